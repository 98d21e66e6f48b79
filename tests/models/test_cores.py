"""The number of cores: a container's CPU quota counts."""

import pytest

from cropvlm.models.cores import cpu_count

NO_QUOTA = {"cpu.max": "max 100000"}


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        pytest.param("0::/", {"cpu.max": "150000 100000"}, 2, id="one and a half cores"),
        pytest.param("0::/", {"cpu.max": "900000 100000"}, 8, id="more than there are"),
        pytest.param("0::/", NO_QUOTA, 8, id="no quota"),
        pytest.param("0::/job/7", NO_QUOTA | {"job/7/cpu.max": "300000 100000"}, 3, id="a group of its own"),
        pytest.param("4:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "9", "cpu/a/cpu.cfs_period_us": "3"}, 3, id="v1, a group"),
    ],
)
def test_a_cpu_quota_counts_as_cores(groups, files, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    (tmp_path / "own").write_text(f"{groups}\n1:memory:/elsewhere\n")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert cpu_count(tmp_path / "own", tmp_path) == expected
    assert cpu_count(tmp_path / "none", tmp_path / "none") == 8
