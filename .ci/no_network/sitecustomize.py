"""On PYTHONPATH: Python processes reach this machine alone, and say so where they try another.

So checks show that nothing in them downloads. Installers are not asked: set up first.
"""

import ipaddress
import socket

_getaddrinfo = socket.getaddrinfo
_connect = socket.socket.connect


def _refuse_elsewhere(host: object) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost", socket.gethostname()):
        return
    try:
        local = ipaddress.ip_address(str(name).split("%")[0]).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ConnectionRefusedError(f"no network in these checks, but {name} was asked for")


def getaddrinfo(host, *args, **kwargs):
    _refuse_elsewhere(host)
    return _getaddrinfo(host, *args, **kwargs)


def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        _refuse_elsewhere(address[0])
    return _connect(self, address)


socket.getaddrinfo = getaddrinfo
socket.socket.connect = connect
