"""What Ray Serve is told of a model."""

import pytest

from raydecode.config import ReplicaConfig, ScalingConfig, deployment_name, parse_serve
from serve_app.deploy import resources, scaling


def model(**sections):
    text = "models: [{model: toy}]"
    return parse_serve(text, [f"models.0.{name}={value}" for name, value in sections.items()]).models[0]


@pytest.mark.parametrize(
    ("nodes", "sections", "placed", "threads"),
    [
        ([], {}, (0.0, 0.0), 1),
        ([{"CPU": 2.0}], {}, (0.0, 0.0), 2),
        ([{"CPU": 2.0}], {"scaling.max": 2}, (0.0, 0.0), 1),
        ([{"CPU": 16.0}], {"scaling.max": 3}, (5.0, 0.0), 5),
        ([{"CPU": 16.0, "GPU": 2.0}], {"model": "org/large"}, (0.0, 1.0), 16),
        ([{"CPU": 16.0, "GPU": 2.0}], {}, (15.0, 0.0), 15),
        ([{"CPU": 16.0}], {"actors": "{num_cpus: 2, num_gpus: 0.5}"}, (2.0, 0.5), 2),
    ],
)
def test_resources(nodes, sections, placed, threads):
    assert resources(model(**sections), nodes) == ({"num_cpus": placed[0], "num_gpus": placed[1]}, threads)


def test_a_fixed_number_of_replicas_is_not_scaled():
    assert scaling(ScalingConfig(min=2, max=2), 32) == {"num_replicas": 2}


def test_scaling_to_zero_waits_as_long_as_scaling_down():
    found = scaling(ScalingConfig(min=0, max=2, downscale_delay_s=40.0), 32)["autoscaling_config"]
    assert (found["downscale_to_zero_delay_s"], found["target_ongoing_requests"]) == (40.0, 32.0)
    from ray.serve.config import AutoscalingConfig

    AutoscalingConfig(**found)


def test_names_are_such_as_ray_takes():
    assert deployment_name("org/Large 7B") == "model-org-Large-7B"
    assert ReplicaConfig().num_cpus is None
