/* Hooks that no other case calls: twins, calls by number, the family of exec, calls before main. */
#include "case.h"

#include <spawn.h>
#include <stdarg.h>
#include <sys/epoll.h>
#include <sys/sendfile.h>

extern char **environ;
int __vdprintf_chk(int fd, int flag, const char *format, va_list arguments);

static void echo(int fd, const char *text)
{
    send_to(fd, text, peer4, ECHO);
    wait_for(fd, POLLIN, 2000);
    receive_from(fd, 0);
}

/* What comes back of what was sent on a connected socket. */
static void comes_back(int fd)
{
    wait_for(fd, POLLIN, 2000);
    receive(fd, 0);
}

static int format(int fd, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = __vdprintf_chk(fd, 1, format, arguments);
    va_end(arguments);
    return length;
}

/* (sendfile and splice into a UDP socket are the kernel's.) */
CASE(calls_twins, MIXED)
{
    int fd = udp(host4, 6701), ends[2];
    struct epoll_event event = {.events = EPOLLIN}, got;
    connect_to(fd, peer4, ECHO);
    value("pipe", pipe(ends));
    FILE *file = tmpfile();
    fputs("from a file", file);
    fflush(file);
    int set = epoll_create(1);
    value("epoll_ctl", epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    value("epoll_create 0", epoll_create(0));
    for (int i = 0; i < 3; i++) {
        off_t offset = 5;
        value("sendfile64", sendfile64(fd, fileno(file), &offset, 100));
        value("epoll_wait", epoll_wait(set, &got, 1, 2000));
        comes_back(fd);
        offset = 0;
        value("SYS_sendfile", syscall(SYS_sendfile, fd, fileno(file), &offset, 4));
        comes_back(fd);
        value("write", write(ends[1], "from a pipe", 11));
        value("SYS_splice", syscall(SYS_splice, ends[0], NULL, fd, NULL, 100, 0));
        comes_back(fd);
        value("__vdprintf_chk", format(fd, "number %d", i));
        comes_back(fd);
    }
    int copy = fcntl64(fd, F_DUPFD_CLOEXEC, 200);
    value("F_DUPFD_CLOEXEC", copy);
    value("F_GETFD", fcntl64(copy, F_GETFD));
    value("close", close(fd));
    value("send", send(copy, "copy", 4, 0));
    value("F_SETFL", fcntl64(copy, F_SETFL, O_NONBLOCK));
    comes_back(copy);
    receive(copy, 0);
}

CASE(calls_clone3, ACCELERATED)
{
    struct {
        uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
    } how = {.exit_signal = SIGCHLD};
    int fd = udp(host4, 6702);
    echo(fd, "before");
    fflush(stdout);
    pid_t child = (pid_t)syscall(SYS_clone3, &how, sizeof how);
    if (child == 0) {
        echo(fd, "child");
        value("close", close(fd));
        fflush(stdout);
        _exit(3);
    }
    reap(child);
    echo(fd, "after");
    value("too short", syscall(SYS_clone3, &how, 8));
}

/* How a child becomes another program. */
static void become(int way, char **words)
{
    switch (way) {
    case 0: execv("/bin/sh", words); break;
    case 1: execve("/bin/sh", words, environ); break;
    case 2: execvp("sh", words); break;
    case 3: execvpe("sh", words, environ); break;
    case 4: execlp("sh", words[0], words[1], words[2], (char *)NULL); break;
    case 5: syscall(SYS_execve, "/bin/sh", words, environ); break;
    default: break;
    }
}

/* A socket that is closed by the exec, and one that the program gets as its standard output. */
CASE(calls_exec, MIXED)
{
    static const char *const ways[] = {"execv",   "execve", "execvp",
                                       "execvpe", "execlp", "SYS_execve"};
    int fd = udp(host4, 6703);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    for (int i = 0; i < 6; i++) {
        line("%s", ways[i]);
        echo(fd, "before");
        int own = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        connect_to(own, peer4, ECHO);
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            char command[64];
            char *words[] = {"sh", "-c", command, NULL};
            snprintf(command, sizeof command, "echo to you; [ ! -e /proc/self/fd/%d ]", fd);
            dup2(own, 1);
            become(i, words);
            _exit(9);
        }
        reap(child);
        comes_back(own);
        close(own);
        echo(fd, "after");
    }
    char *nothing[] = {NULL};
    value("no such file", execve("/no/such/file", nothing, nothing));
    echo(fd, "still here");
}

/* posix_spawn makes the socket another program's standard output. */
CASE(calls_spawn_dup2, MIXED)
{
    int fd = udp(host4, 6704);
    for (int i = 0; i < 4; i++)
        echo(fd, "before");
    connect_to(fd, peer4, ECHO);
    posix_spawn_file_actions_t actions;
    value("init", posix_spawn_file_actions_init(&actions));
    value("adddup2", posix_spawn_file_actions_adddup2(&actions, fd, 1));
    value("adddup2 of -1", posix_spawn_file_actions_adddup2(&actions, -1, 1));
    char *words[] = {"sh", "-c", "echo spawned", NULL};
    pid_t child;
    fflush(stdout);
    value("posix_spawn", posix_spawn(&child, "/bin/sh", &actions, NULL, words, environ));
    value("destroy", posix_spawn_file_actions_destroy(&actions));
    reap(child);
    comes_back(fd);
    value("close", close(fd));
    int again = udp(host4, 6704);
    echo(again, "after");
}

/* What runs before the constructors of all libraries, ours too. */
static long early_read = -2, early_closed = -2, early_bound = -2;
static char early_bytes[16];
static int early_socket = -1;

static void early(int count, char **words, char **variables)
{
    int file = (int)syscall(SYS_openat, AT_FDCWD, "/proc/self/comm", O_RDONLY);
    early_read = syscall(SYS_read, file, early_bytes, sizeof early_bytes - 1);
    early_closed = syscall(SYS_close, file);
    if (count < 2 || strcmp(words[1], "calls_before_main") != 0)
        return;
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(6705)};
    for (; *variables; variables++)
        if (strncmp(*variables, "HOST4=", 6) == 0)
            inet_pton(AF_INET, *variables + 6, &any.sin_addr);
    early_socket = (int)syscall(SYS_socket, AF_INET, SOCK_DGRAM, 0);
    early_bound = syscall(SYS_bind, early_socket, &any, sizeof any);
}

__attribute__((section(".preinit_array"), used)) static void (*const before_all)(int, char **,
                                                                                 char **) = early;

CASE(calls_before_main, ACCELERATED)
{
    content("SYS_read", early_bytes, early_read);
    value("SYS_close", early_closed);
    value("SYS_bind", early_bound);
    for (int i = 0; i < 4; i++)
        echo(early_socket, "early");
    int fd = udp(host4, 6706);
    echo(fd, "later");
}
