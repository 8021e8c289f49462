from tests.metrics.conftest import empty_hub, shared_weights, squeezenet_dir  # noqa: F401
