/* fork, vfork, exec, posix_spawn, and sockets sent to another process. */
#include "case.h"

#include <spawn.h>
#include <sys/epoll.h>
#include <sys/prctl.h>

extern char **environ;

static void echo(int fd, const char *text)
{
    send_to(fd, text, peer4, ECHO);
    wait_for(fd, POLLIN, 2000);
    receive_from(fd, 0);
}

/* The child serves after the parent has closed its copy. */
CASE(process_child_serves, ACCELERATED)
{
    int fd = udp(host4, 6101), ends[2];
    echo(fd, "parent");
    value("pipe", pipe(ends));
    pid_t child = fork();
    if (child == 0) {
        char byte;
        close(ends[1]);
        yes("parent has closed", read(ends[0], &byte, 1) == 0);
        peer("send %s 6000 6101 5 3 0", host4);
        for (int i = 0; i < 3; i++) {
            wait_for(fd, POLLIN, 2000);
            receive_from(fd, 0);
        }
        echo(fd, "child");
        fflush(stdout);
        _exit(7);
    }
    close(ends[0]);
    value("close", close(fd));
    close(ends[1]);
    reap(child);
    int again = udp(host4, 6101);
    echo(again, "parent again");
}

/* The fork without the handlers of pthread_atfork (glibc 2.34). */
CASE(process_bare_fork, ACCELERATED)
{
    int fd = udp(host4, 6120);
    echo(fd, "parent");
    fflush(stdout);
    pid_t child = _Fork();
    if (child == 0) {
        echo(fd, "child");
        value("close", close(fd));
        fflush(stdout);
        _exit(3);
    }
    reap(child);
    echo(fd, "parent again");
}

/* The child exits or closes: the parent's socket lives. */
CASE(process_parent_keeps, ACCELERATED)
{
    int fd = udp(host4, 6102);
    echo(fd, "before");
    for (int i = 0; i < 3; i++) {
        pid_t child = fork();
        if (child == 0) {
            if (i == 0)
                close(fd);
            if (i == 2)
                kill(getpid(), SIGKILL);
            _exit(i);
        }
        reap(child);
        echo(fd, "after");
        peer("send %s 6000 6102 5 1 0", host4);
        wait_for(fd, POLLIN, 2000);
        receive_from(fd, 0);
    }
}

/* Both sides use the socket in turn. */
CASE(process_both, ACCELERATED)
{
    int fd = udp(host4, 6103), down[2], up[2];
    char byte = 'x';
    value("pipe", pipe(down));
    value("pipe", pipe(up));
    pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < 3 && read(down[0], &byte, 1) == 1; i++) {
            wait_for(fd, POLLIN, 2000);
            receive_from(fd, 0);
            echo(fd, "child");
            if (write(up[1], &byte, 1) != 1)
                _exit(1);
        }
        _exit(0);
    }
    for (int i = 0; i < 3; i++) {
        echo(fd, "parent");
        peer("send %s 6000 6103 6 1 0", host4);
        /* The child prints between these two. */
        yes("child has done its part", write(down[1], &byte, 1) == 1 && read(up[0], &byte, 1) == 1);
    }
    reap(child);
    echo(fd, "parent alone");
}

/* A daemonised grandchild uses a socket bound before the double fork. */
CASE(process_double_fork, ACCELERATED)
{
    int fd = udp(host4, 6104), ends[2];
    value("pipe", pipe(ends));
    value("PR_SET_CHILD_SUBREAPER", prctl(PR_SET_CHILD_SUBREAPER, 1));
    pid_t child = fork();
    if (child == 0) {
        setsid();
        if (fork() != 0)
            _exit(0);
        close(ends[0]);
        pause_ms(100);
        for (int i = 0; i < 3; i++)
            echo(fd, "grandchild");
        _exit(write(ends[1], "x", 1) != 1);
    }
    close(fd);
    close(ends[1]);
    reap(child);
    char byte;
    value("read", read(ends[0], &byte, 1));
    value("read", read(ends[0], &byte, 1));
    /* The kernel closes the descriptors of a process that ends in no certain order. */
    done("wait", wait(NULL));
    int again = udp(host4, 6104);
    echo(again, "parent");
}

/* A child makes sockets of its own; so does the parent after it. */
CASE(process_new_sockets, ACCELERATED)
{
    int first = udp(host4, 6105);
    echo(first, "before fork");
    pid_t child = fork();
    if (child == 0) {
        int own = udp(host4, 6106);
        echo(own, "child's own");
        echo(first, "inherited");
        value("close", close(first));
        echo(own, "child's own");
        _exit(0);
    }
    reap(child);
    int later = udp(host4, 6106);
    echo(later, "parent's later");
    echo(first, "parent's first");
}

/* CPython's subprocess: the vfork child closes everything, then execs. */
CASE(process_vfork_closerange, ACCELERATED)
{
    int fd = udp(host4, 6107);
    echo(fd, "before");
    for (int i = 0; i < 3; i++) {
        fflush(stdout);
        pid_t child = vfork();
        if (child == 0) {
            close_range(3, ~0u, 0);
            execl("/bin/true", "true", (char *)NULL);
            _exit(9);
        }
        reap(child);
        echo(fd, "after");
        peer("send %s 6000 6107 5 1 0", host4);
        wait_for(fd, POLLIN, 2000);
        receive_from(fd, 0);
    }
}

/* system() and posix_spawn() beside a live socket. */
CASE(process_spawn, ACCELERATED)
{
    int fd = udp(host4, 6108);
    echo(fd, "before");
    fflush(stdout);
    value("system", system("exit 3") >> 8);
    char *const words[] = {"sh", "-c", "exit 4", NULL};
    pid_t child;
    value("posix_spawn", posix_spawn(&child, "/bin/sh", NULL, NULL, words, environ));
    reap(child);
    value("posix_spawnp", posix_spawnp(&child, "sh", NULL, NULL, words, environ));
    reap(child);
    FILE *out = popen("echo from popen", "r");
    char text[64] = "";
    yes("fgets", fgets(text, sizeof text, out) != NULL);
    line("%.*s", (int)strcspn(text, "\n"), text);
    value("pclose", pclose(out));
    echo(fd, "after");
    echo(fd, "after");
}

/* inetd: the socket becomes fd 0 and 1 of another program, which has no environment. What is
 * not read yet may be the kernel's by then, so nothing is sent before the exec. */
CASE(process_exec, MIXED)
{
    int fd = udp(host4, 6109);
    for (int i = 0; i < 4; i++)
        echo(fd, "before exec");
    connect_to(fd, peer4, ECHO);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        dup2(fd, 0);
        dup2(fd, 1);
        closefrom(3);
        char *const none[] = {NULL};
        const char *ask = "echo question; [ \"$(dd bs=100 count=1 2>/dev/null)\" = question ]";
        execle("/bin/sh", "sh", "-c", ask, (char *)NULL, none);
        _exit(9);
    }
    reap(child);
    value("close", close(fd));
    int again = udp(host4, 6109);
    echo(again, "after exec");
}

/* A socket marked close-on-exec is gone in the new program; the port is free for it. */
CASE(process_cloexec, MIXED)
{
    struct to local = at(host4, 6110);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    value("bind", bind(fd, (struct sockaddr *)&local.at, local.length));
    for (int i = 0; i < 3; i++)
        echo(fd, "before");
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        char command[64];
        snprintf(command, sizeof command, "[ ! -e /proc/self/fd/%d ]", fd);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(9);
    }
    reap(child);
    echo(fd, "after");
}

#define TEN "0", "1", "2", "3", "4", "5", "6", "7", "8", "9"
#define MANY TEN, TEN, TEN, TEN, TEN, TEN, TEN, TEN, TEN, TEN

/* Lists of arguments that do not end in registers, nor soon after. */
CASE(process_exec_lists, MIXED)
{
    int fd = udp(host4, 6111);
    for (int i = 0; i < 3; i++)
        echo(fd, "before");
    char *const a_variable[] = {"A=the environment", NULL};
    for (int form = 0; form < 4; form++) {
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            switch (form) {
            case 0:
                execl("/bin/echo", "echo", MANY, "end", (char *)NULL);
                break;
            case 1:
                execlp("echo", "echo", MANY, "end", (char *)NULL);
                break;
            case 2:
                execle("/bin/sh", "sh", "-c", "echo $A $@", MANY, "end", (char *)NULL, a_variable);
                break;
            default:
                execle("/bin/sh", "sh", "-c", "echo $A", (char *)NULL, a_variable);
            }
            _exit(9);
        }
        reap(child);
    }
    echo(fd, "after");
}

static void pass(int over, int fd)
{
    char byte = 'x', ancillary[CMSG_SPACE(sizeof fd)] = "";
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = ancillary,
                             .msg_controllen = sizeof ancillary};
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    *c = (struct cmsghdr){CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS};
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    value("sendmsg SCM_RIGHTS", sendmsg(over, &message, 0));
}

static int passed(int over)
{
    int fd = -1;
    char byte, ancillary[CMSG_SPACE(sizeof fd)];
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = ancillary,
                             .msg_controllen = sizeof ancillary};
    value("recvmsg", recvmsg(over, &message, 0));
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    if (c && c->cmsg_type == SCM_RIGHTS)
        memcpy(&fd, CMSG_DATA(c), sizeof fd);
    return fd;
}

/* A bound socket goes to another process and works there. */
CASE(process_scm_rights, MIXED)
{
    int pair[2], go[2];
    char byte;
    value("socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    value("pipe", pipe(go));
    pid_t child = fork();
    if (child == 0) {
        close(pair[0]);
        /* Until the parent has printed its part. */
        close(go[1]);
        read(go[0], &byte, 1);
        int fd = passed(pair[1]);
        yes("child has it", fd >= 0);
        for (int i = 0; i < 2; i++)
            echo(fd, "child");
        peer("send %s 6000 6111 5 2 0", host4);
        for (int i = 0; i < 2; i++) {
            wait_for(fd, POLLIN, 2000);
            receive_from(fd, 0);
        }
        _exit(0);
    }
    close(pair[1]);
    int fd = udp(host4, 6111);
    for (int i = 0; i < 6; i++)
        echo(fd, "parent");
    pass(pair[0], fd);
    value("close", close(fd));
    close(go[1]);
    reap(child);
    int again = udp(host4, 6111);
    echo(again, "parent");
}

/* SCM_RIGHTS within one process: a dup by another road. */
CASE(process_scm_self, MIXED)
{
    int pair[2];
    value("socketpair", socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
    int fd = udp(host4, 6112);
    for (int i = 0; i < 4; i++)
        echo(fd, "first");
    pass(pair[0], fd);
    int copy = passed(pair[1]);
    echo(copy, "copy");
    echo(fd, "first");
    value("close", close(fd));
    echo(copy, "copy alone");
}

/* Has the peer send `count` datagrams to each of both addresses, and waits until they are here. */
static void unread(int port, int count)
{
    int beside = udp("", 6120);
    peer("send %s 6000 %d 9 %d 1", host4, port, count);
    peer("send %s 6001 %d 900 %d 1", host4, port, count);
    peer("send %s 6000 6120 1 1 0", host4);
    wait_for(beside, POLLIN, 5000);
    value("close", close(beside));
}

/* What was not read before SCM_RIGHTS is read by the receiver, in order, from the same senders. */
CASE(process_scm_unread, MIXED)
{
    int pair[2];
    value("socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    const char *const hosts[] = {host4, "", "::"};
    for (int i = 0; i < 3; i++) {
        int fd = udp(hosts[i], 6113 + i);
        echo(fd, "first");
        unread(6113 + i, 30);
        pass(pair[0], fd);
        value("close", close(fd));
        int copy = passed(pair[1]);
        for (int k = 0; k < 60; k++)
            receive_from(copy, MSG_DONTWAIT);
        receive(copy, MSG_DONTWAIT);
        value("close", close(copy));
    }
    int six = udp(host6, 6117), beside = udp(host6, 6118);
    peer("send %s 6000 6117 9 20 1", host6);
    peer("send %s 6000 6118 1 1 0", host6);
    wait_for(beside, POLLIN, 5000);
    pass(pair[0], six);
    for (int k = 0; k < 21; k++)
        receive_from(six, MSG_DONTWAIT);
}

/* The same for the program that comes by exec. */
CASE(process_exec_unread, MIXED)
{
    int fd = udp(host4, 6119);
    echo(fd, "first");
    unread(6119, 20);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        dup2(fd, 0);
        closefrom(3);
        execl("/usr/bin/env", "env", "dd", "bs=2000", "count=40", "status=none", (char *)NULL);
        _exit(9);
    }
    reap(child);
    line("\nread");
}

/* More children than a stack has places for processes, where the machine has time for them. */
enum { ECHOERS = 8, FORKS = 1000, FORKS_MS = 30000 };

struct echoer {
    int fd;
    bool is_stream;
    long rounds, wrong;
};
static _Atomic bool has_forked;

/* Sends and reads until all forks are over; a datagram that is lost is sent again. */
static void *echoes(void *argument)
{
    struct echoer *me = argument;
    struct sockaddr_storage from;
    while (!has_forked) {
        long sent = me->rounds, got = -1;
        send(me->fd, &sent, sizeof sent, 0);
        struct pollfd ready = {.fd = me->fd, .events = POLLIN};
        if (me->is_stream)
            me->wrong += recv(me->fd, &got, sizeof got, MSG_WAITALL) != sizeof got || got != sent;
        else
            while (got != sent && poll(&ready, 1, 1000) == 1)
                recvfrom(me->fd, &got, sizeof got, 0, (struct sockaddr *)&from,
                         &(socklen_t){sizeof from});
        me->rounds++;
    }
    return NULL;
}

/* A child of a program whose threads are in the middle of calls uses what it has. */
static int one_child(int fd, int spare)
{
    int copy = dup(spare), own = socket(AF_INET, SOCK_STREAM, 0);
    char byte = 'c';
    bool works = write(fd, &byte, 1) == 1 && read(fd, &byte, 1) == 1 && byte == 'c';
    return works && close(copy) == 0 && close(own) == 0 && close(spare) == 0;
}

CASE(process_fork_threads, ACCELERATED)
{
    struct echoer all[ECHOERS] = {0};
    pthread_t threads[ECHOERS];
    int fd = dial(peer4, T_ECHO), forks = 0, served = 0;
    uint64_t begin = now_ms();
    for (int i = 0; i < ECHOERS; i++) {
        all[i].is_stream = i % 2;
        all[i].fd = i % 2 ? dial(peer4, T_ECHO) : udp(host4, 6130 + i);
        if (!all[i].is_stream)
            connect_to(all[i].fd, peer4, ECHO);
    }
    for (int i = 0; i < ECHOERS; i++)
        pthread_create(&threads[i], NULL, echoes, &all[i]);
    /* All of them, but on a machine that has no time for so many. */
    for (; forks < FORKS && now_ms() - begin < FORKS_MS; forks++) {
        int status = 0;
        pid_t child = fork();
        if (child == 0)
            _exit(one_child(fd, all[forks % ECHOERS].fd));
        served += waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 1;
    }
    has_forked = true;
    yes("all are served", forks > 20 && served == forks);
    for (int i = 0; i < ECHOERS; i++) {
        pthread_join(threads[i], NULL);
        yes("went on", all[i].rounds > 1);
        value("wrong", all[i].wrong);
    }
}

static void look_at(int set)
{
    struct epoll_event ready[2];
    int count = epoll_wait(set, ready, 2, 2000);
    readiness("epoll_wait", count, count > 0 ? ready[0].events : 0);
    for (int i = 0; i < count; i++)
        receive((int)ready[i].data.u64, 0);
}

/* Parent and child wait with the set that was made before the fork; whoever closes it, or has more
 * sets and sockets of its own, takes nothing from the other. */
CASE(process_epoll, ACCELERATED)
{
    int set = epoll_create1(0), fd = udp(host4, 6140), stream = dial(peer4, T_ECHO);
    for (int i = 0; i < 2; i++) {
        int one = i ? stream : fd;
        struct epoll_event in = {.events = EPOLLIN, .data.u64 = (uint64_t)one};
        value("epoll_ctl", epoll_ctl(set, EPOLL_CTL_ADD, one, &in));
    }
    for (int round = 0; round < 3; round++) {
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            send_to(fd, "child", peer4, ECHO);
            look_at(set);
            value("send", send(stream, "child", 5, 0));
            look_at(set);
            struct epoll_event in = {.events = EPOLLIN};
            int own = epoll_create1(0), other = udp(host4, 6141);
            value("epoll_ctl", epoll_ctl(own, EPOLL_CTL_ADD, other, &in));
            value("epoll_wait", epoll_wait(own, &in, 1, 0));
            value("close", close(round ? own : set));
            fflush(stdout);
            _exit(2);
        }
        reap(child);
        send_to(fd, "parent", peer4, ECHO);
        look_at(set);
        value("send", send(stream, "parent", 6, 0));
        look_at(set);
    }
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        send_to(fd, "left", peer4, ECHO);
        look_at(set);
        fflush(stdout);
        _exit(3);
    }
    int closed = close(set);
    reap(child);
    value("close", closed);
}
