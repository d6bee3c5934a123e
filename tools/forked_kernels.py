"""A pytest plugin for nbval: kernels begin with the libraries imported, see `kernel_server`."""

from importlib.metadata import EntryPoint

from jupyter_client.provisioning import KernelProvisionerFactory

NAME = "forked"


def pytest_configure() -> None:
    group = KernelProvisionerFactory.GROUP_NAME
    factory = KernelProvisionerFactory.instance()
    factory.provisioners[NAME] = EntryPoint(NAME, "tools.kernel_server:ForkedKernel", group)
    factory.default_provisioner_name = NAME
