/* Children that use their parent's sockets before fork() has come back, or without any fork(). */
#include "case.h"

#include <pty.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <utmp.h>

/* A flag of terminals, not the peer's port. */
#undef ECHO

/* What handlers use; -1 = they do nothing. */
static int datagrams = -1, stream = -1, own_stream = -1;
static unsigned char *room;
enum { ROOM = 8 << 20 };

static void echo(const char *who)
{
    send_to(datagrams, who, peer4, ECHO);
    wait_for(datagrams, POLLIN, 2000);
    receive_from(datagrams, 0);
    value("send", send(stream, who, strlen(who), 0));
    receive(stream, 0);
}

/* Changes the table of descriptors, and that of connections. */
static void open_and_close(void)
{
    int copy = dup(datagrams), other = dup(stream), fd = dial(peer4, T_ECHO);
    value("send", send(fd, "new", 3, 0));
    receive(fd, 0);
    close(fd);
    close(other);
    close(copy);
}

static void on_signal(int signal)
{
    (void)signal;
    echo("signal");
    open_and_close();
}

static void prepare(void)
{
    if (datagrams < 0)
        return;
    open_and_close();
    fflush(stdout);
}

static void in_child(void)
{
    if (datagrams < 0)
        return;
    /* Likely to be where the fork has left something out. */
    room = mmap(NULL, ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(room, 0x5a, ROOM);
    raise(SIGUSR1);
    echo("handler");
    open_and_close();
    value("close", close(own_stream));
}

static void begin(int port)
{
    signal(SIGUSR1, on_signal);
    datagrams = udp(host4, port);
    stream = dial(peer4, T_ECHO);
    echo("before");
}

static int child_ends(void)
{
    echo("child");
    open_and_close();
    bool whole = true;
    for (int i = 0; room && i < ROOM; i++)
        whole = whole && room[i] == 0x5a;
    yes("memory is its own", whole);
    value("close", close(datagrams));
    value("close", close(stream));
    fflush(stdout);
    return 3;
}

static void end(pid_t child)
{
    reap(child);
    echo("parent");
    open_and_close();
}

/* pthread_atfork's handlers, and a signal's inside of one. */
CASE(process_atfork, ACCELERATED)
{
    begin(6121);
    own_stream = dial(peer4, T_ECHO);
    value("pthread_atfork", pthread_atfork(prepare, NULL, in_child));
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        _exit(child_ends());
    reap(child);
    echo("parent");
    /* What the handler has closed is its parent's still. */
    value("send", send(own_stream, "own", 3, 0));
    receive(own_stream, 0);
}

/* Who is killed in the middle of a fork, and by whom: the parent before there is a child, the child
 * before it has run, both. */
enum { NOBODY, PARENT, CHILD, BOTH };
static int killed;

static void before_fork(void)
{
    if (killed == PARENT)
        raise(SIGKILL);
}

static void after_fork(void)
{
    if (killed == BOTH)
        kill(getppid(), SIGKILL);
    if (killed == CHILD || killed == BOTH)
        raise(SIGKILL);
}

/* What nobody has any more ends, as soon as that is so: no peer waits. */
CASE(tcp_fork_killed, ACCELERATED)
{
    static const char *const who[] = {"nobody", "parent", "child", "both"};
    value("pthread_atfork", pthread_atfork(before_fork, NULL, after_fork));
    int fd = listener(host4, 6290, 5);
    for (int of = PARENT; of <= BOTH; of++) {
        peer("dial %s 6290 s5 w", host4);
        uint64_t begin = now_ms();
        fflush(stdout);
        pid_t worker = fork();
        if (worker == 0) {
            char bytes[5];
            recv(accept(fd, NULL, NULL), bytes, sizeof bytes, MSG_WAITALL);
            killed = of;
            fork();
            _exit(0);
        }
        waitpid(worker, NULL, 0);
        line("%s", peer("dialled"));
        yes(who[of], now_ms() - begin < 4000);
    }
}

/* Each generation uses what the first has opened; the one between has used nothing before. */
CASE(process_generations, ACCELERATED)
{
    begin(6122);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        child = fork();
        if (child == 0) {
            child = _Fork();
            if (child == 0)
                _exit(child_ends());
            end(child);
            fflush(stdout);
            _exit(4);
        }
        end(child);
        fflush(stdout);
        _exit(5);
    }
    end(child);
}

static int in_clone(void *argument)
{
    (void)argument;
    return child_ends();
}

/* libc's clone: a child on a stack of its own. */
CASE(process_clone_stack, ACCELERATED)
{
    static _Alignas(16) char stack[1 << 18];
    begin(6123);
    value("no function", clone(NULL, stack + sizeof stack, SIGCHLD, NULL));
    for (int i = 0; i < 3; i++) {
        fflush(stdout);
        end(clone(in_clone, stack + sizeof stack, SIGCHLD, NULL));
    }
    /* One that shares the memory, while the parent waits. */
    fflush(stdout);
    pid_t child = vfork();
    if (child == 0)
        _exit(6);
    end(child);
}

static int return_eight(void *argument)
{
    (void)argument;
    return 8;
}

/* A child that needs no more has half a kilobyte of stack. */
CASE(process_clone_small, ACCELERATED)
{
    enum { PAGE = 4096, STACK = 512 };
    unsigned char *pages =
        mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    value("mprotect", mprotect(pages, PAGE, PROT_NONE));
    begin(6125);
    for (int i = 0; i < 3; i++) {
        fflush(stdout);
        end(clone(return_eight, pages + PAGE + STACK, SIGCHLD, NULL));
    }
}

static void print_terminal(int terminal)
{
    char text[64];
    long length = 0, more;
    while (length < 64 && (more = read(terminal, text + length, 64 - (size_t)length)) > 0)
        length += more;
    content("terminal", text, length);
    close(terminal);
}

/* The child has what its parent has, but for the standard streams. */
CASE(process_forkpty, ACCELERATED)
{
    begin(6126);
    int terminal, out = dup(STDOUT_FILENO);
    value("dup2", dup2(stream, STDIN_FILENO));
    fflush(stdout);
    pid_t child = forkpty(&terminal, NULL, NULL, NULL);
    if (child == 0) {
        write(STDIN_FILENO, "said", 4);
        bool are_terminals = isatty(0) && isatty(1) && isatty(2);
        dup2(out, STDOUT_FILENO);
        yes("terminals", are_terminals);
        yes("session", getsid(0) == getpid());
        _exit(child_ends());
    }
    print_terminal(terminal);
    end(child);
    value("send", send(STDIN_FILENO, "mine", 4, 0));
    receive(STDIN_FILENO, 0);
}

/* login_tty() by itself: a connection that was the standard input has no other number. What cannot
   be put in the place of a stream (the limit is below that number) is no matter. */
CASE(process_login_tty, ACCELERATED)
{
    begin(6127);
    int master, terminal, out = dup(STDOUT_FILENO);
    value("openpty", openpty(&master, &terminal, NULL, NULL, NULL));
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        dup2(stream, STDIN_FILENO);
        close(stream);
        close(master);
        struct rlimit limit, usual;
        getrlimit(RLIMIT_NOFILE, &usual);
        limit = usual;
        limit.rlim_cur = STDERR_FILENO;
        setrlimit(RLIMIT_NOFILE, &limit);
        int failed = login_tty(terminal);
        setrlimit(RLIMIT_NOFILE, &usual);
        write(STDIN_FILENO, "said", 4);
        dup2(out, STDOUT_FILENO);
        value("login_tty", failed);
        yes("the others' error output", !isatty(STDERR_FILENO));
        value("send", send(STDIN_FILENO, "no socket", 9, 0));
        fflush(stdout);
        _exit(4);
    }
    close(terminal);
    print_terminal(master);
    end(child);
}

/* daemon(): the parent ends at once, and then nobody has the sockets but the daemon. */
CASE(process_daemon, ACCELERATED)
{
    int ends[2];
    char byte = 'x';
    value("pipe", pipe(ends));
    begin(6124);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        value("daemon", daemon(1, 1));
        pause_ms(200);
        child_ends();
        _exit(write(ends[1], &byte, 1) != 1);
    }
    close(datagrams);
    close(stream);
    close(ends[1]);
    value("read", read(ends[0], &byte, 1));
    reap(child);
    begin(6124);
}
