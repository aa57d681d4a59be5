/* Urgent data: MSG_OOB, SO_OOBINLINE, SIOCATMARK, and who is told of it. */
#include "case.h"

#include <sys/epoll.h>
#include <sys/select.h>

static void at_mark(int fd)
{
    int mark = -1, waiting = -1;
    value("SIOCATMARK", ioctl(fd, SIOCATMARK, &mark));
    value("FIONREAD", ioctl(fd, FIONREAD, &waiting));
    line("  mark %d, waiting %d", mark, waiting);
}

static int served(int port, const char *script)
{
    int fd = listener(host4, port, 5);
    line("%s", peer("dial %s %d %s", host4, port, script));
    int one = accept(fd, NULL, NULL);
    done("accept", one);
    close(fd);
    return one;
}

/* Waits until so many bytes in all have come: the peer sends only what its script says. */
static void all_there(int fd, short events, int bytes)
{
    wait_for(fd, events, 3000);
    int waiting = -1;
    for (int i = 0; i < 3000 && ioctl(fd, FIONREAD, &waiting) == 0 && waiting < bytes; i++)
        pause_ms(1);
}

CASE(tcp_urgent_receive, ACCELERATED)
{
    int fd = served(6230, "u5 g1 s3 w");
    char byte = '-';
    /* An urgent byte is told of a moment before its segment can be read. */
    all_there(fd, POLLPRI, 4);
    wait_for(fd, POLLIN | POLLPRI, 0);
    at_mark(fd);
    content("peek", &byte, recv(fd, &byte, 1, MSG_OOB | MSG_PEEK));
    wait_for(fd, POLLPRI, 0);
    content("oob", &byte, recv(fd, &byte, 1, MSG_OOB));
    wait_for(fd, POLLPRI, 0);
    value("again", recv(fd, &byte, 1, MSG_OOB));
    receive(fd, 0);
    at_mark(fd);
    receive(fd, MSG_DONTWAIT);
    value("send", send(fd, "x", 1, 0));
    all_there(fd, POLLIN, 3);
    receive(fd, 0);
    at_mark(fd);
    value("none", recv(fd, &byte, 1, MSG_OOB));
    close(fd);
    line("%s", peer("dialled"));
}

CASE(tcp_urgent_message, ACCELERATED)
{
    int fd = served(6231, "u1 g1 u4 w");
    char bytes[8] = "";
    wait_for(fd, POLLPRI, 3000);
    struct msghdr message = {.msg_iov = &(struct iovec){bytes, sizeof bytes}, .msg_iovlen = 1};
    content("recvmsg", bytes, recvmsg(fd, &message, MSG_OOB | MSG_PEEK));
    yes("MSG_OOB", message.msg_flags & MSG_OOB);
    message.msg_iov->iov_len = 0;
    value("no room", recvmsg(fd, &message, MSG_OOB | MSG_PEEK));
    yes("MSG_OOB", message.msg_flags & MSG_OOB);
    yes("MSG_TRUNC", message.msg_flags & MSG_TRUNC);
    value("nowhere", recv(fd, NULL, 1, MSG_OOB | MSG_PEEK));
    value("send", send(fd, "x", 1, 0));
    /* A second urgent byte: the first, which nobody has read, is lost. */
    all_there(fd, POLLIN, 3);
    at_mark(fd);
    content("oob", bytes, recv(fd, bytes, 1, MSG_OOB));
    receive(fd, 0);
    close(fd);
    line("%s", peer("dialled"));
}

CASE(tcp_urgent_inline, ACCELERATED)
{
    int fd = listener(host4, 6232, 5), on = 1, told = -1;
    value("SO_OOBINLINE", setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &on, sizeof on));
    line("%s", peer("dial %s 6232 u5 s2 w", host4));
    int one = accept(fd, NULL, NULL);
    done("accept", one);
    socklen_t length = sizeof told;
    value("SO_OOBINLINE", getsockopt(one, SOL_SOCKET, SO_OOBINLINE, &told, &length));
    line("  %d", told);
    all_there(one, POLLIN, 7);
    wait_for(one, POLLPRI, 0);
    at_mark(one);
    char byte;
    value("oob", recv(one, &byte, 1, MSG_OOB));
    receive(one, 0);
    at_mark(one);
    receive(one, 0);
    at_mark(one);
    wait_for(one, POLLPRI, 0);
    close(one);
    line("%s", peer("dialled"));
}

CASE(tcp_urgent_send, ACCELERATED)
{
    int fd = served(6233, "o w");
    value("send", send(fd, "ab", 2, 0));
    value("oob", send(fd, "cd!", 3, MSG_OOB));
    receive(fd, 0);
    value("nothing", send(fd, "", 0, MSG_OOB));
    value("shutdown", shutdown(fd, SHUT_WR));
    value("ended", send(fd, "x", 1, MSG_OOB | MSG_NOSIGNAL));
    line("%s", peer("dialled"));
    close(fd);
}

CASE(tcp_urgent_wait, ACCELERATED)
{
    int fd = served(6234, "g1 u1 g1 u1 g1 u1 w"), set = epoll_create1(0);
    char byte;
    struct epoll_event event = {.events = EPOLLPRI | EPOLLET, .data.u32 = 5}, got = {0};
    value("add", epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    readiness("nothing", epoll_wait(set, &got, 1, 0), got.events);
    value("send", send(fd, "x", 1, 0));
    readiness("epoll", epoll_wait(set, &got, 1, 3000), got.events);
    content("oob", &byte, recv(fd, &byte, 1, MSG_OOB));
    readiness("nothing", epoll_wait(set, &got, 1, 0), got.events);
    event.events = EPOLLPRI;
    value("mod", epoll_ctl(set, EPOLL_CTL_MOD, fd, &event));
    value("send", send(fd, "x", 1, 0));
    readiness("epoll", epoll_wait(set, &got, 1, 3000), got.events);
    readiness("epoll", epoll_wait(set, &got, 1, 0), got.events);
    content("oob", &byte, recv(fd, &byte, 1, MSG_OOB));
    readiness("nothing", epoll_wait(set, &got, 1, 0), got.events);
    value("send", send(fd, "x", 1, 0));
    fd_set except;
    FD_ZERO(&except);
    FD_SET(fd, &except);
    struct timeval time = {3, 0};
    value("select", select(fd + 1, NULL, NULL, &except, &time));
    yes("except", FD_ISSET(fd, &except));
    content("oob", &byte, recv(fd, &byte, 1, MSG_OOB));
    FD_ZERO(&except);
    FD_SET(fd, &except);
    time = (struct timeval){0, 0};
    value("select", select(fd + 1, NULL, NULL, &except, &time));
    close(fd);
    line("%s", peer("dialled"));
}

/* A splice ends before the urgent byte, also where that is part of the stream. */
static void into_pipe(int fd, int end)
{
    wait_for(fd, POLLPRI, 3000);
    value("splice", splice(fd, NULL, end, NULL, 100, 0));
    value("splice", splice(fd, NULL, end, NULL, 100, 0));
    value("O_NONBLOCK", fcntl(fd, F_SETFL, O_NONBLOCK));
    value("splice", splice(fd, NULL, end, NULL, 100, 0));
    receive(fd, 0);
    value("splice", splice(fd, NULL, end, NULL, 100, 0));
}

CASE(tcp_urgent_splice, ACCELERATED)
{
    int pipes[2], on = 1, fd = served(6235, "u5 g1 s3 w");
    value("pipe", pipe(pipes));
    all_there(fd, POLLPRI, 4);
    into_pipe(fd, pipes[1]);
    value("send", send(fd, "x", 1, 0));
    wait_for(fd, POLLIN, 3000);
    value("splice", splice(fd, NULL, pipes[1], NULL, 100, 0));
    close(fd);
    line("%s", peer("dialled"));
    fd = served(6236, "u5 w");
    value("SO_OOBINLINE", setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &on, sizeof on));
    into_pipe(fd, pipes[1]);
    close(fd);
    line("%s", peer("dialled"));
}
