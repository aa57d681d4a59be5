/* TCP: close() in one thread while another waits on the same socket. */
#include "case.h"

#include <sys/epoll.h>

/* A call that waits, and what it gave. */
struct waiter {
    int fd;
    enum { RECV, ACCEPT, POLL, SEND } call;
    long result;
    int error;
    char bytes[8];
    pthread_t thread;
    _Atomic pid_t tid;
};

static void *wait_in(void *argument)
{
    struct waiter *me = argument;
    struct pollfd one = {me->fd, POLLIN, 0};
    static char much[16 << 20];
    me->tid = gettid();
    switch (me->call) {
    case RECV:
        me->result = recv(me->fd, me->bytes, sizeof me->bytes, 0);
        break;
    case ACCEPT:
        me->result = accept(me->fd, NULL, NULL);
        break;
    case POLL:
        me->result = poll(&one, 1, 2000);
        break;
    case SEND:
        me->result = send(me->fd, much, sizeof much, 0);
    }
    me->error = errno;
    return NULL;
}

/* Starts the call, and returns when it waits. */
static void start(struct waiter *waiter, int fd, int call)
{
    *waiter = (struct waiter){.fd = fd, .call = call};
    pthread_create(&waiter->thread, NULL, wait_in, waiter);
    await_sleep(&waiter->tid);
}

static void end(struct waiter *waiter, const char *what)
{
    pthread_join(waiter->thread, NULL);
    errno = waiter->error;
    if (waiter->call == ACCEPT)
        done(what, waiter->result);
    else
        value(what, waiter->result);
}

/* The call that waits keeps the socket: it gets what comes, and only then the peer sees the end. */
CASE(tcp_close_under_recv, ACCELERATED)
{
    struct waiter waiter;
    int fd = accepted(6240, "p200 s3 w");
    start(&waiter, fd, RECV);
    value("close", close(fd));
    value("again", close(fd));
    end(&waiter, "recv");
    content("  bytes", waiter.bytes, waiter.result);
    line("%s", peer("dialled"));
}

/* Two wait; one is served, the other goes on. */
CASE(tcp_close_under_two, ACCELERATED)
{
    struct waiter one, two;
    int fd = accepted(6241, "p200 s3 p100 s5 w");
    start(&one, fd, RECV);
    start(&two, fd, RECV);
    value("close", close(fd));
    pthread_join(one.thread, NULL);
    pthread_join(two.thread, NULL);
    line("together %ld", one.result + two.result);
    line("%s", peer("dialled"));
}

CASE(tcp_close_under_poll, ACCELERATED)
{
    struct waiter waiter;
    int fd = accepted(6242, "p200 s3 w");
    start(&waiter, fd, POLL);
    value("close", close(fd));
    end(&waiter, "poll");
    line("%s", peer("dialled"));
}

CASE(tcp_close_under_accept, ACCELERATED)
{
    struct waiter waiter;
    int local = listener(host4, 6243, 5);
    start(&waiter, local, ACCEPT);
    value("close", close(local));
    peer("dial %s 6243 s3 w", host4);
    end(&waiter, "accept");
    receive((int)waiter.result, 0);
}

CASE(tcp_close_under_send, ACCELERATED)
{
    struct waiter waiter;
    int fd = accepted(6244, "p200 w");
    start(&waiter, fd, SEND);
    value("close", close(fd));
    end(&waiter, "send");
    line("%s", peer("dialled"));
}

/* An epoll set keeps nothing: a closed member is none. */
CASE(tcp_close_under_epoll, ACCELERATED)
{
    int fd = accepted(6245, "p100 s3 w"), other = accepted(6246, "p300 s3 w");
    int set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = 1}, found = {0};
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
    event.data.u32 = 2;
    epoll_ctl(set, EPOLL_CTL_ADD, other, &event);
    value("close", close(fd));
    value("epoll_wait", epoll_wait(set, &found, 1, 3000));
    line("  member %u", found.data.u32);
}

/* A child that becomes another program leaves the listener as it is. */
CASE(tcp_exec_beside_listener, ACCELERATED)
{
    for (int i = 0; i < 2; i++) {
        int local = listener(host4, 6250 + i, 5);
        fcntl(local, F_SETFD, i ? 0 : FD_CLOEXEC);
        pid_t child = fork();
        if (child == 0) {
            execl("/bin/true", "true", NULL);
            _exit(1);
        }
        reap(child);
        peer("dial %s %d p100 s3 w", host4, 6250 + i);
        int fd = accept(local, NULL, NULL);
        done("accept", fd);
        receive(fd, 0);
        close(fd);
        close(local);
    }
}

/* A shutdown ends every wait. */
CASE(tcp_shutdown_under, ACCELERATED)
{
    struct waiter waiter;
    int fd = accepted(6247, "w"), local = listener(host4, 6248, 5);
    start(&waiter, fd, RECV);
    value("shutdown", shutdown(fd, SHUT_RDWR));
    end(&waiter, "recv");
    start(&waiter, local, ACCEPT);
    value("shutdown", shutdown(local, SHUT_RDWR));
    end(&waiter, "accept");
    line("%s", peer("dialled"));
}
