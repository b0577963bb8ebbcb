"""Say how pytest-xdist spreads tests over its processes, where tests/run asks for `--dist loadscope`."""

from pathlib import Path

from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

# The modules that take longest, the longest first. Begun last, one would run alone when all others have ended.
LONGEST = ["recovery", "hung_programs", "clients", "hostile_file_systems", "killed_driver", "sync_init", "leaks"]


def rank(module: Path) -> int:
    """Return the place of a module in the order in which modules are begun."""
    name = module.stem.removeprefix("test_")
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Keeps the tests of a module, which share a driver, in one process; those of the longest modules by test function."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return nodeid.partition("[")[0] if rank(Path(module)) < len(LONGEST) else module

    def remove_node(self, node: WorkerController) -> str | None:
        """Return the test in which a process crashed. It has failed once, and is not run again, as pytest-xdist would do."""
        for tests in self.assigned_work.get(node, {}).values():
            for test, is_done in tests.items():
                if not is_done:
                    tests[test] = True
                    super().remove_node(node)
                    return str(test)
        super().remove_node(node)
        return None
