#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""link_relay.py A B DELAY_MS LOSS - a slow, lossy wire between two new TAP devices A and B.

Packets arrive DELAY_MS later, one in LOSS is dropped (drawn with a fixed seed). It works where the
kernel lacks netem. Called as root by mpi.sh, which moves the devices into two network namespaces;
a relay that is stopped is a link that is cut.
"""
import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 2, 0x1000


def tap(name):
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return device


def main():
    ends = [tap(sys.argv[1]), tap(sys.argv[2])]
    delay, loss, dice = float(sys.argv[3]) / 1000, int(sys.argv[4]), random.Random(1)
    queue, number, dropped = [], 0, 0
    print("ready", flush=True)
    while True:
        now = time.monotonic()
        while queue and queue[0][0] <= now:
            _, _, end, packet = heapq.heappop(queue)
            try:
                os.write(end, packet)
            except OSError:
                pass  # the other end is down: lost, as on a wire
        wait = max(queue[0][0] - now, 0) if queue else None
        for end in select.select(ends, [], [], wait)[0]:
            try:
                packet = os.read(end, 65536)
            except OSError:
                continue
            number += 1
            if dice.randrange(loss) == 0:
                dropped += 1
                print(f"wire: {number} packets, {dropped} lost, {sys.argv[3]} ms each way", flush=True)
                continue
            other = ends[1] if end == ends[0] else ends[0]
            heapq.heappush(queue, (time.monotonic() + delay, number, other, packet))


main()
