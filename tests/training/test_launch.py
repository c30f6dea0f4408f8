import pytest
from torch.distributed.run import get_args_parser

from cli import main
from mobileone_q.errors import TrainingError
from mobileone_q.training.launch import first_host, from_slurm

TASK = {
    "SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123456",
    "SLURM_STEP_NODELIST": "gpu[003-004,9]",
}  # fmt: skip


def test_a_task_of_srun_finds_its_place():
    assert from_slurm(TASK) == {
        "RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu003", "MASTER_PORT": "23456",
    }  # fmt: skip
    own = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5"}
    assert from_slurm(TASK | own) == {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_JOB_ID": "3"},  # a batch script itself
        TASK | {"SLURM_STEP_NUM_TASKS": "1"},
        TASK | {"RANK": "0"},  # torchrun, which srun has started once on each machine
    ],
)
def test_elsewhere_nothing_is_set(others):
    assert from_slurm(others) == {}


def test_machines_that_are_not_named_are_asked_for():
    with pytest.raises(TrainingError, match="set MASTER_ADDR"):
        from_slurm({key: value for key, value in TASK.items() if key != "SLURM_STEP_NODELIST"})


def test_the_first_machine_is_read_from_a_list():
    names = {"a": "a", "a,b": "a", "n[01-03]": "n01", "n[7,9]-ib,m": "n7-ib", "n1,m[2-3]": "n1"}
    assert {hosts: first_host(hosts) for hosts in names} == names


@pytest.mark.parametrize("command", ["train", "qat"])
def test_no_option_is_taken_for_torchrun_s_own(command):
    """torchrun takes every word that begins one of its options, such as --run on 9c2a016."""
    own = [word for action in get_args_parser()._actions for word in action.option_strings]
    words = [word for parameter in main.commands[command].params for word in parameter.opts]
    assert not [word for word in words if word.startswith("--") and any(o.startswith(word) for o in own)]
