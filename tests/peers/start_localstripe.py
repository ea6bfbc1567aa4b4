# Runs localstripe as it is, but reachable from this machine alone, on a free port, with nothing written to disk, and for no
# longer than somebody holds the other end of its input.
import os, socket, sys, threading
from aiohttp import web
from localstripe.resources import Store
from localstripe.server import app

Store.dump_to_disk = lambda store: None
listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
print(listener.getsockname()[1], flush=True)
web.run_app(app, sock=listener, print=None, access_log=None)
