"""Run a command in an isolated network, and log the destinations that it tries to reach.

    unshare --user --map-root-user --net python packets.py LOG COMMAND...

The network has loopback and one interface with a default route; every packet that would leave the machine is a line of
the log: protocol, address, port, and the name that a DNS query asks for. Nothing answers.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import threading

# The gateway has a static neighbour entry, so that packets are sent without ARP requests.
_SET_UP = """
ip link set lo up
ip link add out type veth peer name far
ip addr add 10.99.0.2/24 dev out
ip link set out up
ip link set far up
ip neigh add 10.99.0.1 lladdr 02:00:00:00:00:01 dev out
ip route add default via 10.99.0.1 dev out
"""
_IPV4, _TCP, _UDP, _DNS = b"\x08\x00", 6, 17, 53


def describe(frame: bytes) -> str | None:
    """Describe a packet in one line; None if it is not IPv4, such as the kernel's IPv6 announcements."""
    if frame[12:14] != _IPV4:
        return None
    packet = frame[14:]
    payload = packet[(packet[0] & 15) * 4 :]
    protocol, address = packet[9], socket.inet_ntoa(packet[16:20])
    if protocol not in (_TCP, _UDP):
        return f"{protocol} {address}"
    port = struct.unpack("!H", payload[2:4])[0]
    name = f" {_asked(payload[8:])}" if (protocol, port) == (_UDP, _DNS) else ""
    return f"{'tcp' if protocol == _TCP else 'udp'} {address}:{port}{name}"


def _asked(query: bytes) -> str:
    parts, at = [], 12
    while at < len(query) and query[at]:
        parts.append(query[at + 1 : at + 1 + query[at]].decode("latin-1"))
        at += query[at] + 1
    return ".".join(parts)


def _watch(log: str) -> None:
    for line in _SET_UP.strip().splitlines():
        subprocess.run(line.split(), check=True)
    watching = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    watching.bind(("far", 0))

    def write() -> None:
        with open(log, "w", buffering=1) as file:
            while True:
                if line := describe(watching.recv(65535)):
                    file.write(line + "\n")

    threading.Thread(target=write, daemon=True).start()


if __name__ == "__main__":
    _watch(sys.argv[1])
    sys.exit(subprocess.run(sys.argv[2:], check=False).returncode)
