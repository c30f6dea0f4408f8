from benchmarks.calibration_study import ablation_recipes
from calibrate.recipe import Recipe


def test_the_ablation_goes_from_bare_grids_to_the_default_one_step_at_a_time():
    recipes = [recipe for _, recipe in ablation_recipes()]
    assert recipes[0] == Recipe.bare(range_method="minmax")
    assert recipes[-2] == Recipe()
    assert recipes[-1] == Recipe(tune_scales_seconds=240)
    assert len(set(recipes)) == len(recipes)
