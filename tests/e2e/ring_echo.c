/*
 * An echo of TCP and UDP by liburing: ring_echo HOST PORT ORDER.
 *
 * ORDER says when the ring is made: "first", before the sockets; "bound", behind listen; "used",
 * when a connection has been accepted, and read from, and a datagram waits. Prints "ready" when
 * peers may come.
 */
#include <arpa/inet.h>
#include <liburing.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum what { ACCEPT, RECEIVE, SEND, DATAGRAM, ANSWER };

struct job {
    enum what what;
    int fd;
    int length, sent;
    struct sockaddr_in from;
    struct iovec part;
    struct msghdr message;
    char bytes[16384];
};

static struct io_uring ring;

static long ok(const char *call, long value)
{
    if (value >= 0)
        return value;
    perror(call);
    exit(1);
}

static void make_ring(void)
{
    int error = io_uring_queue_init(256, &ring, 0);
    if (error < 0) {
        fprintf(stderr, "io_uring_queue_init: %s\n", strerror(-error));
        exit(2);
    }
}

static void submit(struct job *job)
{
    struct io_uring_sqe *entry = io_uring_get_sqe(&ring);
    switch (job->what) {
    case ACCEPT:
        io_uring_prep_accept(entry, job->fd, NULL, NULL, 0);
        break;
    case RECEIVE:
        io_uring_prep_recv(entry, job->fd, job->bytes, sizeof job->bytes, 0);
        break;
    case SEND:
        io_uring_prep_send(entry, job->fd, job->bytes + job->sent, job->length - job->sent, 0);
        break;
    case DATAGRAM:
        job->part = (struct iovec){job->bytes, sizeof job->bytes};
        job->message = (struct msghdr){.msg_name = &job->from,
                                       .msg_namelen = sizeof job->from,
                                       .msg_iov = &job->part,
                                       .msg_iovlen = 1};
        io_uring_prep_recvmsg(entry, job->fd, &job->message, 0);
        break;
    case ANSWER:
        job->part.iov_len = job->length;
        io_uring_prep_sendmsg(entry, job->fd, &job->message, 0);
        break;
    }
    io_uring_sqe_set_data(entry, job);
}

static void begin(enum what what, int fd)
{
    struct job *job = calloc(1, sizeof *job);
    job->what = what;
    job->fd = fd;
    submit(job);
}

/* What comes after a job that is done. */
static void next(struct job *job, int result)
{
    if (job->what == ACCEPT) {
        begin(RECEIVE, ok("accept", result < 0 ? -1 : result));
    } else if (job->what == RECEIVE) {
        if (result <= 0) {
            close(job->fd);
            free(job);
            return;
        }
        job->what = SEND;
        job->length = result;
        job->sent = 0;
    } else if (job->what == SEND) {
        job->sent += result > 0 ? result : job->length;
        if (job->sent >= job->length)
            job->what = RECEIVE;
    } else if (job->what == DATAGRAM) {
        job->what = ANSWER;
        job->length = result;
    } else {
        job->what = DATAGRAM;
    }
    submit(job);
}

int main(int count, char **arguments)
{
    if (count != 4)
        return 1;
    const char *order = arguments[3];
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(arguments[2]))};
    inet_pton(AF_INET, arguments[1], &at.sin_addr);
    if (!strcmp(order, "first"))
        make_ring();
    int udp = ok("socket", socket(AF_INET, SOCK_DGRAM, 0));
    ok("bind", bind(udp, (struct sockaddr *)&at, sizeof at));
    int tcp = ok("socket", socket(AF_INET, SOCK_STREAM, 0)), one = 1;
    setsockopt(tcp, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    ok("bind", bind(tcp, (struct sockaddr *)&at, sizeof at));
    ok("listen", listen(tcp, 100));
    if (!strcmp(order, "bound"))
        make_ring();
    puts("ready");
    fflush(stdout);
    if (!strcmp(order, "used")) {
        int connection = ok("accept", accept(tcp, NULL, NULL));
        char hello[5];
        ok("recv", recv(connection, hello, sizeof hello, MSG_WAITALL));
        struct pollfd waits = {udp, POLLIN, 0};
        ok("poll", poll(&waits, 1, -1));
        make_ring();
        begin(RECEIVE, connection);
    }
    begin(ACCEPT, tcp);
    begin(DATAGRAM, udp);
    for (;;) {
        struct io_uring_cqe *done;
        ok("submit", io_uring_submit_and_wait(&ring, 1));
        while (io_uring_peek_cqe(&ring, &done) == 0) {
            struct job *job = io_uring_cqe_get_data(done);
            int result = done->res;
            io_uring_cqe_seen(&ring, done);
            next(job, result);
        }
    }
}
