/* sent_times ADDRESS PORT [both]: sends to the first connection, and prints what its error queue
   tells of that by SO_TIMESTAMPING: lists of the number of the last byte, and how many seconds the
   host's clock and the NIC's were ahead of the program's, null = no time. With `both` the host's
   time is asked for beside the NIC's. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/errqueue.h>
#include <linux/net_tstamp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define SENDS 20

static int is_first = 1;

static double seconds(struct timespec time)
{
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void print_time(struct timespec time)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (time.tv_sec || time.tv_nsec)
        printf(", %f", seconds(time) - seconds(now));
    else
        printf(", null");
}

/* Prints one notice; whether there was one. */
static int told(int fd)
{
    char ancillary[512];
    struct msghdr message = {.msg_control = ancillary, .msg_controllen = sizeof ancillary};
    struct scm_timestamping times = {0};
    struct sock_extended_err error = {0};
    if (recvmsg(fd, &message, MSG_ERRQUEUE) < 0)
        return 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPING)
            memcpy(&times, CMSG_DATA(c), sizeof times);
        else
            memcpy(&error, CMSG_DATA(c), sizeof error);
    }
    if (error.ee_errno != ENOMSG || error.ee_origin != SO_EE_ORIGIN_TIMESTAMPING ||
        error.ee_info != SCM_TSTAMP_SND)
        exit(3);
    printf("%s[%u", is_first ? "[" : ", ", error.ee_data);
    is_first = 0;
    print_time(times.ts[0]);
    print_time(times.ts[2]);
    printf("]");
    return 1;
}

/* Prints so many notices, which come within ten seconds each. */
static void await(int fd, int count)
{
    while (count) {
        struct pollfd one = {fd, 0, 0};
        if (poll(&one, 1, 10000) != 1 || !(one.revents & POLLERR))
            return;
        while (count && told(fd))
            count--;
    }
}

static void check(int is_right, const char *what)
{
    if (!is_right) {
        perror(what);
        exit(2);
    }
}

int main(int count, char **arguments)
{
    static char bytes[SENDS * 300];
    struct sockaddr_in address = {.sin_family = AF_INET};
    int both = count > 3, one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    check(count > 2, "arguments");
    inet_aton(arguments[1], &address.sin_addr);
    address.sin_port = htons(atoi(arguments[2]));
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    check(!bind(listener, (struct sockaddr *)&address, sizeof address), "bind");
    check(!listen(listener, 5), "listen");
    int fd = accept(listener, NULL, NULL);
    check(fd >= 0, "accept");
    int asked = SOF_TIMESTAMPING_TX_HARDWARE | SOF_TIMESTAMPING_TX_SOFTWARE |
                SOF_TIMESTAMPING_RAW_HARDWARE | SOF_TIMESTAMPING_SOFTWARE |
                SOF_TIMESTAMPING_OPT_ID | SOF_TIMESTAMPING_OPT_TSONLY |
                (both ? SOF_TIMESTAMPING_OPT_TX_SWHW : 0);
    check(!setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPING, &asked, sizeof asked), "SO_TIMESTAMPING");
    /* One after the other, up to some segments; then all at once. */
    int each = both ? atoi(arguments[3]) : 1;
    for (int i = 1; i <= SENDS; i++) {
        check(send(fd, bytes, i * 300, 0) == i * 300, "send");
        await(fd, each);
    }
    for (int i = 0; i < SENDS; i++) {
        check(send(fd, bytes, 100, MSG_EOR) == 100, "send");
    }
    await(fd, each * SENDS);
    printf("]\n");
    fflush(stdout);
    char byte;
    /* The peer has all of it. */
    shutdown(fd, SHUT_WR);
    check(recv(fd, &byte, 1, 0) == 0, "recv");
    return told(fd) ? 4 : 0;
}
