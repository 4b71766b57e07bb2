import platform
import subprocess
import sys

import pytest

CODE = """
import resource, torch
from segue.placement.executor.host_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        one = torch.ones(2**21)
        other = one + 1
        del one, other
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator has the setting")
def test_tensors_of_several_mib_get_the_same_pages_again():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=120)
    pages = 20 * 2 * 2**23 // 4096
    assert int(done.stdout) < 0.01 * pages
