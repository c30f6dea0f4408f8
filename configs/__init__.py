"""Bundled YAML files, installed as ``mobileone_q.configs``: ``--config jetson`` is ``jetson.yaml`` here."""
