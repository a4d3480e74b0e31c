from __future__ import annotations

from typing import ClassVar

from pointsman.testing import ContractSuite, deployment
from pointsman_shadow.plugin import plugin

MIRROR = {"name": "next", "model": "chat", "challenger": "new", "sample_rate": 1.0, "keep_results": 20}


class TestContract(ContractSuite):
    info = plugin
    config: ClassVar = {"mirrors": [MIRROR]}
    bad_configs: ClassVar = [
        ({"mirrors": [MIRROR, MIRROR]}, "used twice"),
        ({"mirrors": [{**MIRROR, "sample_rate": 1.5}]}, "sample_rate"),
        ({"mirrors": [{**MIRROR, "challenger": "nobody"}]}, "nobody"),
        ({"mirrors": [{**MIRROR, "judge": {"model": "nobody"}}]}, "judge"),
        ({"mirrors": [{**MIRROR, "endpoints": ["embeddings"]}]}, "endpoints"),
        ({"mirrors": [{**MIRROR, "keep_texts": True, "redact": {"patterns": ["("]}}]}, "regular expression"),
        ({"mirrors": [{**MIRROR, "redact": {"patterns": ["x"]}}]}, "keep_texts"),
        ({"mirrors": [{**MIRROR, "keep_texts": True, "redact": {"hook": "missing"}}]}, "missing"),
        ({"mirrors": [{**MIRROR, "budget": {"usd_per_day": 0.0000001}}]}, "usd_per_day"),
        ({"mirrors": [{**MIRROR, "sampel_rate": 0.1}]}, "sampel_rate"),
        ({"flush_s": 0}, "flush_s"),
    ]
    deployments = (deployment("old-1", "chat"), deployment("new-1", "new"))
    model = "chat"
