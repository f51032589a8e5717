"""Serves a folder on a free port of loopback, which is printed; only to who knows the signature.

usage: http_files.py FOLDER ranges|plain
"""
import http.server, os, re, sys

folder, ranges = sys.argv[1], sys.argv[2] == "ranges"


class Files(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *args):
        super().__init__(*args, directory=folder)

    def log_message(self, *args):
        pass

    def send_head(self):
        if "?sig=SEENSIGNATURE" not in self.path or self.command == "HEAD" and ranges:
            # Signed links are for one method only.
            self.send_error(403)
            return None
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not (ranges and asked):
            return super().send_head()
        path = self.translate_path(self.path)
        size, first = os.path.getsize(path), int(asked[1])
        if first >= size:
            self.send_error(416)
            return None
        file = open(path, "rb")
        file.seek(first)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - first))
        self.end_headers()
        return file


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *args):
        """Clients that are killed break off."""


with Server(("127.0.0.1", 0), Files) as server:
    print(server.server_address[1], flush=True)
    server.serve_forever()
