"""Serves Keystone on a port of the loopback interface, each request in a thread."""
import socketserver
import sys
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

port = int(sys.argv[1])
sys.argv = ["keystone"]
from keystone.server.wsgi import initialize_public_application


class Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # Swift validates many tokens at once.
    request_queue_size = 128


class Handler(WSGIRequestHandler):
    def log_message(self, *_):
        pass


make_server("127.0.0.1", port, initialize_public_application(), Server, Handler).serve_forever()
