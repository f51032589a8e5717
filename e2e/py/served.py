"""Runs scripts of this folder, each in a fork of this process, which has imported what they share: to import it
takes longer than most of them work.

usage: served.py; prints the path of a socket, and ends when its standard input does. A request is a line of
JSON, ["script.py", argument, …]; the answer is JSON, {"code": …, "stdout": …, "stderr": …}.
"""
import json, os, runpy, select, signal, socket, sys, tempfile, traceback

import duckdb
import pyarrow.dataset, pyarrow.fs, pyarrow.parquet
import pyiceberg.catalog.rest, pyiceberg.catalog.sql, pyiceberg.io.pyarrow


def code_of(script, arguments):
    """The exit code that the script would have as a program."""
    sys.argv = [os.path.join(sys.path[0], os.path.basename(script)), *arguments]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def answer(connection):
    request = json.loads(connection.makefile("r", encoding="utf-8").readline())
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        found = {"code": code_of(request[0], request[1:])}
        sys.stdout.flush()
        sys.stderr.flush()
        for name, stream in ("stdout", out), ("stderr", err):
            stream.seek(0)
            found[name] = stream.read().decode(errors="replace")
    connection.sendall(json.dumps(found).encode())


def main():
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        # Who ends is not waited for; a script may wait for its own processes.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        listener.bind(os.path.join(folder, "socket"))
        listener.listen(128)
        print(listener.getsockname(), flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                try:
                    answer(connection)
                finally:
                    os._exit(0)
            connection.close()


main()
