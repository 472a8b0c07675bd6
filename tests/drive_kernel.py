"""Runs cells in a notebook kernel and interrupts the one that serves; ``python drive_kernel.py PORT CELL CELL ...``.

A process of its own, because jupyter_client leaves event loops open, which pytest would report at some later test.
"""

import sys
import threading
import time
import urllib.error
import urllib.request

from jupyter_client.manager import start_new_kernel


def main(port, *cells):
    manager, client = start_new_kernel(kernel_name="python3")

    def interrupt():
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}").read()
                break
            except urllib.error.URLError:
                time.sleep(0.05)
        manager.interrupt_kernel()

    def show(message):
        content = message["content"]
        print(content.get("text") or "\n".join(content.get("traceback", [])), end="", flush=True)

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        for cell in cells:
            client.execute_interactive(cell, output_hook=show, timeout=60)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
