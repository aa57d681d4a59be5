/* TCP: signals that interrupt a call, or do not. */
#include "case.h"

#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/sendfile.h>

static volatile sig_atomic_t alarms;

static void on_alarm(int signal)
{
    (void)signal;
    alarms++;
}

/* One SIGALRM in so many milliseconds. */
static void alarm_in(long milliseconds, int flags)
{
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = flags};
    struct itimerval time = {.it_value = {0, milliseconds * 1000}};
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &time, NULL);
}

/* A connection whose other end runs the script. */
static int accepted(int port, const char *script)
{
    int local = listener(host4, port, 5);
    peer("dial %s %d %s", host4, port, script);
    int fd = accept(local, NULL, NULL);
    done("accept", fd);
    close(local);
    return fd;
}

/* What ends a wait in the kernel, with SA_RESTART too, ends it here. */
CASE(tcp_signals_waits, ACCELERATED)
{
    int fd = dial(peer4, T_ECHO), set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN}, found;
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
    for (int i = 0; i < 2; i++) {
        int flags = i ? SA_RESTART : 0;
        struct pollfd one = {fd, POLLIN, 0};
        fd_set in;
        struct timeval limit = {2, 0};
        alarm_in(30, flags);
        value("poll", poll(&one, 1, -1));
        alarm_in(30, flags);
        value("poll, limit", poll(&one, 1, 2000));
        FD_ZERO(&in);
        FD_SET(fd, &in);
        alarm_in(30, flags);
        value("select", select(fd + 1, &in, NULL, NULL, &limit));
        yes("time left", limit.tv_sec == 1);
        alarm_in(30, flags);
        value("epoll_wait", epoll_wait(set, &found, 1, -1));
        alarm_in(30, flags);
        value("epoll_wait, limit", epoll_wait(set, &found, 1, 2000));
    }
    line("alarms %d", (int)alarms);
}

/* SA_RESTART goes on with a receive, unless the socket has a time limit. */
CASE(tcp_signals_receive, ACCELERATED)
{
    struct timeval limit = {2, 0};
    int fd = accepted(6230, "p150 s3 p200 s5 w");
    alarm_in(30, 0);
    receive(fd, 0);
    alarm_in(30, SA_RESTART);
    receive(fd, 0);
    alarm_in(30, SA_RESTART);
    char bytes[8];
    content("WAITALL", bytes, recv(fd, bytes, 5, MSG_WAITALL));
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    alarm_in(30, SA_RESTART);
    receive(fd, 0);
    int local = listener(host4, 6231, 5);
    alarm_in(30, 0);
    value("accept", accept(local, NULL, NULL));
    setsockopt(local, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    alarm_in(30, SA_RESTART);
    value("accept, limit", accept(local, NULL, NULL));
    line("alarms %d", (int)alarms);
}

/* A send tells what it has sent; the next one is interrupted; a restarted one goes on. */
CASE(tcp_signals_send, ACCELERATED)
{
    enum { SIZE = 16 << 20 };
    char *bytes = calloc(1, SIZE);
    int fd = accepted(6233, "p900 w");
    alarm_in(60, 0);
    long sent = send(fd, bytes, SIZE, 0);
    yes("a part", sent > 0 && sent < SIZE);
    /* What is on its way makes room for a while. */
    for (int full = 0; full < 3; pause_ms(20))
        full = send(fd, bytes, SIZE, MSG_DONTWAIT) < 0 ? full + 1 : 0;
    alarm_in(60, 0);
    value("full", send(fd, bytes, 1, 0));
    alarm_in(60, SA_RESTART);
    value("restarted", send(fd, bytes, SIZE / 8, 0));
    line("alarms %d", (int)alarms);
    /* What is unsent at the end of the last process is sent by the kernel. */
    close(fd);
    peer("dialled");
    free(bytes);
}

static volatile bool stop;

/* Exchanges messages without an end on a connection of its own. */
static void *traffic(void *connection)
{
    int fd = *(int *)connection;
    char bytes[64];
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    while (!stop)
        if (send(fd, bytes, 64, 0) != 64 || recv(fd, bytes, 64, MSG_WAITALL) != 64)
            break;
    return NULL;
}

/* No signal is lost while frames for others keep waking the waiting thread. */
CASE(tcp_signals_in_traffic, ACCELERATED)
{
    int busy = dial(peer4, T_ECHO), fd = dial(peer4, T_ECHO), interrupted = 0;
    struct timeval limit = {1, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    pthread_t thread;
    pthread_create(&thread, NULL, traffic, &busy);
    for (int i = 0; i < 60; i++) {
        char byte;
        struct pollfd one = {fd, POLLIN, 0};
        alarm_in(7, 0);
        long got = i % 2 ? recv(fd, &byte, 1, 0) : poll(&one, 1, 1000);
        interrupted += got < 0 && errno == EINTR;
    }
    stop = true;
    pthread_join(thread, NULL);
    line("alarms %d, interrupted %d", (int)alarms, interrupted);
}

/* The end of a file leaves at once, whatever count was asked for. */
CASE(tcp_sendfile_end, ACCELERATED)
{
    char path[] = "/tmp/bypass-sendfile-XXXXXX", bytes[100] = "";
    int file = mkstemp(path), fd = dial(peer4, T_ECHO);
    unlink(path);
    value("file", write(file, bytes, sizeof bytes));
    uint64_t start = now_ms();
    for (int i = 0; i < 5; i++) {
        off_t from = 0;
        value("sendfile", sendfile(fd, file, &from, 1 << 20));
        value("recv", recv(fd, bytes, sizeof bytes, MSG_WAITALL));
    }
    yes("not held back", now_ms() - start < 700);
}
