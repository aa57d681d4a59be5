/* Connections that go to another program: exec, SCM_RIGHTS. */
#include "case.h"

#include <sys/epoll.h>

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

static int one_of(int port, const char *script)
{
    int fd = listener(host4, port, 5);
    line("%s", peer("dial %s %d %s", host4, port, script));
    int one = accept(fd, NULL, NULL);
    done("accept", one);
    close(fd);
    return one;
}

/* What the stack carries, beside which the kernel's segments are few. */
static void bulk(void)
{
    static char bytes[1 << 20];
    int fd = dial(peer4, T_SINK);
    value("bulk", send(fd, bytes, sizeof bytes, 0));
    close(fd);
    line("%s", peer("dialled"));
}

/* vsftpd: a child by number, in a pid namespace of its own, closes the listener and serves. */
CASE(tcp_clone, ACCELERATED)
{
    int fd = listener(host4, 6249, 5);
    for (int i = 0; i < 3; i++) {
        peer("dial %s 6249 s5 g5 w", host4);
        int one = accept(fd, NULL, NULL);
        done("accept", one);
        fflush(stdout);
        pid_t child = (pid_t)syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0);
        if (child == 0) {
            value("close", close(fd));
            receive(one, 0);
            value("send", send(one, "hello", 5, 0));
            fflush(stdout);
            _exit(3);
        }
        close(one);
        reap(child);
        line("%s", peer("dialled"));
    }
    bulk();
}

/* inetd: the connection is a program's standard input and output. */
CASE(tcp_exec, MIXED)
{
    bulk();
    int one = one_of(6250, "s10 g16 f w");
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        dup2(one, 0);
        dup2(one, 1);
        closefrom(3);
        const char *ask = "printf 'got %s!\\n' \"$(dd bs=10 count=1 2>/dev/null)\"; cat";
        execl("/bin/sh", "sh", "-c", ask, (char *)NULL);
        _exit(9);
    }
    close(one);
    reap(child);
    line("%s", peer("dialled"));
}

/* The same by the calls that take the program's file by its descriptor. */
CASE(tcp_exec_by_descriptor, MIXED)
{
    bulk();
    char *argv[] = {"sh", "-c", "dd bs=10 count=1 2>/dev/null; cat", NULL};
    for (int way = 0; way < 3; way++) {
        int one = one_of(6254, "s10 g10 f w");
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            int program = open("/bin/sh", O_RDONLY | O_CLOEXEC);
            dup2(one, 0);
            dup2(one, 1);
            if (way == 0)
                fexecve(program, argv, environ);
            if (way == 1)
                execveat(program, "", argv, environ, AT_EMPTY_PATH);
            syscall(SYS_execveat, program, "", argv, environ, AT_EMPTY_PATH);
            _exit(9);
        }
        close(one);
        reap(child);
        line("%s", peer("dialled"));
    }
}

/* The program ends while the peer still sends. */
CASE(tcp_exec_closes, MIXED)
{
    bulk();
    int one = one_of(6251, "s10 w");
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        dup2(one, 0);
        dup2(one, 1);
        execl("/bin/sh", "sh", "-c", "dd bs=10 count=1 2>/dev/null", (char *)NULL);
        _exit(9);
    }
    close(one);
    reap(child);
    line("%s", peer("dialled"));
}

CASE(tcp_cloexec, ACCELERATED)
{
    int fd = listener(host4, 6252, 5);
    line("%s", peer("dial %s 6252 g5 w", host4));
    int one = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
    done("accept", one);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        char command[64];
        snprintf(command, sizeof command, "[ ! -e /proc/self/fd/%d ]", one);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(9);
    }
    reap(child);
    value("write", write(one, "still", 5));
    close(one);
    line("%s", peer("dialled"));
}

CASE(tcp_scm_rights, MIXED)
{
    int pair[2], go[2];
    char byte;
    value("socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    value("pipe", pipe(go));
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        close(pair[0]);
        /* Until the parent has printed its part. */
        close(go[1]);
        read(go[0], &byte, 1);
        int fd = passed(pair[1]);
        yes("child has it", fd >= 0);
        receive(fd, 0);
        value("child writes", write(fd, "child", 5));
        fflush(stdout);
        _exit(0);
    }
    close(pair[1]);
    bulk();
    int one = one_of(6253, "s10 g5 w");
    wait_for(one, POLLIN, 3000);
    pass(pair[0], one);
    value("close", close(one));
    fflush(stdout);
    close(go[1]);
    reap(child);
    line("%s", peer("dialled"));
}

/* Passes a connection to this very program and closes what comes: from then on it is the kernel's,
 * and the descriptor goes on. */
static void through_rights(int fd)
{
    int pair[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    struct sockaddr_storage before = {0}, after = {0};
    socklen_t length = sizeof before, again = sizeof after;
    value("getpeername", getpeername(fd, (struct sockaddr *)&before, &length));
    pass(pair[0], fd);
    int same = passed(pair[1]);
    value("getpeername", getpeername(same, (struct sockaddr *)&after, &again));
    yes("the same peer", length == again && memcmp(&before, &after, length) == 0);
    close(same);
    close(pair[0]);
    close(pair[1]);
}

static int unread(int fd)
{
    int bytes = -1;
    ioctl(fd, FIONREAD, &bytes);
    return bytes;
}

static void options(int fd)
{
    int nodelay = -1, idle = -1;
    socklen_t length = sizeof nodelay;
    getsockopt(fd, IPPROTO_TCP, 1 /* TCP_NODELAY */, &nodelay, &length);
    length = sizeof idle;
    getsockopt(fd, IPPROTO_TCP, 4 /* TCP_KEEPIDLE */, &idle, &length);
    line("nodelay %d, keepidle %d", nodelay != 0, idle);
}

/* Open, with data that nobody has read; options come along. */
CASE(tcp_handover_open, MIXED)
{
    bulk();
    int one = one_of(6260, "s10 g5 s3 w");
    int on = 1, idle = 77;
    setsockopt(one, IPPROTO_TCP, 1, &on, sizeof on);
    setsockopt(one, IPPROTO_TCP, 4, &idle, sizeof idle);
    wait_for(one, POLLIN, 3000);
    through_rights(one);
    line("unread %d", unread(one));
    options(one);
    receive(one, 0);
    value("write", write(one, "hello", 5));
    wait_for(one, POLLIN, 3000);
    receive(one, 0);
    value("shutdown", shutdown(one, SHUT_WR));
    wait_for(one, POLLIN, 3000);
    receive(one, 0);
    close(one);
    line("%s", peer("dialled"));
}

/* The peer has ended its direction, and some of it is unread. */
CASE(tcp_handover_close_wait, MIXED)
{
    bulk();
    int one = one_of(6261, "s10 f g5 w");
    wait_for(one, POLLRDHUP, 3000);
    through_rights(one);
    wait_for(one, POLLIN | POLLRDHUP, 3000);
    receive(one, 0);
    receive(one, 0);
    value("write", write(one, "hello", 5));
    close(one);
    line("%s", peer("dialled"));
}

/* We have ended ours. */
CASE(tcp_handover_fin_wait, MIXED)
{
    bulk();
    int one = one_of(6262, "w s10 p1500");
    value("write", write(one, "bye", 3));
    value("shutdown", shutdown(one, SHUT_WR));
    wait_for(one, POLLIN, 3000);
    through_rights(one);
    receive(one, 0);
    receive(one, 0);
    close(one);
    line("%s", peer("dialled"));
}

/* One that this program has opened. */
CASE(tcp_handover_client, MIXED)
{
    bulk();
    int fd = dial(peer4, T_ECHO);
    value("write", write(fd, "before", 6));
    wait_for(fd, POLLIN, 3000);
    through_rights(fd);
    receive(fd, 0);
    value("write", write(fd, "after", 5));
    wait_for(fd, POLLIN, 3000);
    receive(fd, 0);
    value("shutdown", shutdown(fd, SHUT_WR));
    wait_for(fd, POLLIN, 3000);
    receive(fd, 0);
    close(fd);
}

/* An option that only the kernel has, on a live connection. */
CASE(tcp_handover_option, MIXED)
{
    bulk();
    int one = one_of(6263, "s10 g5 w");
    wait_for(one, POLLIN, 3000);
    int on = 1, is = 0;
    socklen_t length = sizeof is;
    value("IP_MINTTL", setsockopt(one, IPPROTO_IP, IP_MINTTL, &on, sizeof on));
    value("IP_MINTTL", getsockopt(one, IPPROTO_IP, IP_MINTTL, &is, &length));
    line("is %d", is);
    receive(one, 0);
    value("write", write(one, "hello", 5));
    close(one);
    line("%s", peer("dialled"));
}

static void *receives(void *fd)
{
    static char bytes[16];
    return (void *)recv(*(int *)fd, bytes, sizeof bytes, 0);
}

/* A thread that waits in a call, and an epoll set: both go on. */
CASE(tcp_handover_waiters, MIXED)
{
    bulk();
    int waited = one_of(6264, "g1 s10 w"), watched = one_of(6265, "g1 s7 w");
    int set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u32 = 5};
    value("epoll_ctl", epoll_ctl(set, EPOLL_CTL_ADD, watched, &event));
    value("epoll_wait", epoll_wait(set, &event, 1, 0));
    pthread_t thread;
    pthread_create(&thread, NULL, receives, &waited);
    pause_ms(50);
    through_rights(waited);
    through_rights(watched);
    value("write", write(waited, "x", 1));
    value("write", write(watched, "x", 1));
    void *got;
    pthread_join(thread, &got);
    value("recv in a thread", (long)got);
    long count = epoll_wait(set, &event, 1, 3000);
    readiness("epoll_wait", count, event.events);
    line("data %u", event.data.u32);
    receive(watched, 0);
    value("epoll_ctl", epoll_ctl(set, EPOLL_CTL_DEL, watched, NULL));
    close(waited);
    close(watched);
    line("%s", peer("dialled"));
}

/* system(): a shell whose standard output is a connection. */
CASE(tcp_handover_system, MIXED)
{
    bulk();
    int one = one_of(6266, "w");
    fflush(stdout);
    int kept = dup(1);
    dup2(one, 1);
    int status = system("echo from a shell");
    dup2(kept, 1);
    close(kept);
    value("system", status);
    value("write", write(one, "and from us", 11));
    close(one);
    line("%s", peer("dialled"));
}
