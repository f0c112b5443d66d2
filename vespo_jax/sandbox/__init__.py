"""Running a program that nobody has read: in a process of its own, without network, on a read-only
view of the file system, within limits, so that nothing of it is left afterwards.

    with Session({"main.py": program}, Limits(), best_level()) as session:
      outcome = session.run("3 4\\n")

`client.Session` asks a process `python -m vespo_jax.sandbox.supervisor` to fork for a program. The
fork isolates it, starts it as often as it is asked to, watches it, says how it ended, and ends with
it; then the process is asked for the next. What isolates a program depends on the machine
(`client.LEVELS`):

    namespaces   Linux 5.12 and newer, where a user may make namespaces: the program is process 1
                 of a process namespace, so that all it starts dies with it; its network has no
                 devices; its root directory holds the system's libraries, this interpreter and
                 /tmp, which is memory. A filter of system calls besides.
    landlock     Linux 5.13 and newer: the same paths by Landlock rules, and a filter of system
                 calls that refuses sockets, signals and leaving the process group, by which
                 everything is killed. Where root runs it, it cannot start processes.
    interpreter  anything else: Python's audit hooks refuse processes, sockets and writing, and the
                 process group is killed. No fence against a program that means to get out.

Resource limits and a limit on time hold at every level.

This room uses the standard library alone: a supervisor starts fast, and holds nothing to be found.
"""
