/* Connections that go to another program: exec, SCM_RIGHTS. */
#include "case.h"

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

/* What the stack carries, beside which the relay's own segments are few. */
static void bulk(void)
{
    static char bytes[1 << 20];
    int fd = dial(peer4, T_SINK);
    value("bulk", send(fd, bytes, sizeof bytes, 0));
    close(fd);
    line("%s", peer("dialled"));
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
    int pair[2];
    value("socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        close(pair[0]);
        poll(&(struct pollfd){pair[1], POLLIN, 0}, 1, 5000);
        pause_ms(100);
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
    reap(child);
    line("%s", peer("dialled"));
}
