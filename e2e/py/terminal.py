"""Runs a command on a terminal of its own, and prints {"code": …, "lives": […], "screen": […]}: the lines that were
written over later, and those that stand there in the end, as a person sees them.

usage: terminal.py FOLDER INTERRUPT COMMAND [ARGUMENT …]. Once all of what it writes matches the pattern INTERRUPT,
it is sent ^C, as a person would; empty: never.
"""
import json, os, pty, re, signal, sys


def shown(said):
    """What a terminal makes of it. It knows what calve uses: \\r, \\n, clearing to the end of the line, and
    sequences that move nothing (colours, wrapping on and off)."""
    lives, screen, at = [], [""], 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", said):
        line = screen[-1]
        if part == "\r":
            at = 0
        elif part == "\n":
            screen.append("")
            at = 0
        elif part == "\x1b[K":
            if line and at == 0:
                lives.append(line)
            screen[-1] = line[:at]
        elif part.startswith("\x1b["):
            assert part[-1] in "mhl", f"moves the cursor: {part!r}"
        else:
            if line and at == 0:
                lives.append(line)
            screen[-1] = line[:at] + part + line[at + len(part):]
            at += len(part)
    return lives, screen


def main(folder, interrupt, *command):
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvpe(command[0], command, os.environ | {"TERM": "xterm-256color"})
    said = b""
    try:
        while True:
            more = os.read(terminal, 1 << 16)
            if not more:
                break
            said += more
            if interrupt and re.search(interrupt, said.decode(errors="replace"), re.DOTALL):
                os.write(terminal, b"\x03")
                interrupt = ""
    except OSError:
        # Linux says it so: nobody is on the other side any more.
        pass
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    lives, screen = shown(said.decode(errors="replace"))
    print(json.dumps({"code": code, "lives": lives, "screen": screen}))


main(*sys.argv[1:])
