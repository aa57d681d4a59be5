/* dup, close, fcntl, close_range: descriptors and what lives behind them. */
#include "case.h"

#include <sys/stat.h>

static void echo(int fd)
{
    send_to(fd, "echo", peer4, ECHO);
    wait_for(fd, POLLIN, 2000);
    receive_from(fd, 0);
}

CASE(descriptors_dup, ACCELERATED)
{
    int fd = udp(host4, 5901), copy = dup(fd);
    done("dup", copy);
    echo(fd);
    echo(copy);
    peer("send %s 6000 5901 5 2 0", host4);
    wait_for(copy, POLLIN, 2000);
    receive_from(fd, 0);
    wait_for(fd, POLLIN, 2000);
    receive_from(copy, 0);
    value("close", close(fd));
    receive(fd, MSG_DONTWAIT);
    echo(copy);
    value("close", close(copy));
    int again = udp(host4, 5901);
    echo(again);
}

CASE(descriptors_fcntl_dup, ACCELERATED)
{
    int fd = udp(host4, 5902);
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 150);
    yes("150 or more", copy >= 150);
    value("F_GETFD", fcntl(fd, F_GETFD));
    value("F_GETFD of the copy", fcntl(copy, F_GETFD));
    int third = fcntl(copy, F_DUPFD, 200);
    yes("200 or more", third >= 200);
    value("F_GETFD of the third", fcntl(third, F_GETFD));
    value("close", close(fd));
    echo(copy);
    echo(third);
    value("F_DUPFD too high", fcntl(copy, F_DUPFD, 1 << 30));
    value("F_DUPFD negative", fcntl(copy, F_DUPFD, -1));
    value("close", close(third));
    echo(copy);
}

CASE(descriptors_dup2, ACCELERATED)
{
    int first = udp(host4, 5903), second = udp(host4, 5904);
    echo(first);
    echo(second);
    value("dup2 same", dup2(first, first) == first);
    value("dup2", dup2(first, second) == second);
    struct sockaddr_storage own = {0};
    socklen_t length = sizeof own;
    value("getsockname", getsockname(second, (struct sockaddr *)&own, &length));
    print_address("own", &own);
    echo(second);
    line("the port of the one that was closed by it is free");
    int third = udp(host4, 5904);
    echo(third);
    int file = open("/dev/null", O_RDWR);
    value("dup2 of a file over a socket", dup2(file, third) == third);
    struct stat info;
    value("fstat", fstat(third, &info));
    yes("a socket", S_ISSOCK(info.st_mode));
    value("fstat", fstat(first, &info));
    yes("a socket", S_ISSOCK(info.st_mode));
    value("send on the file", send(third, "x", 1, 0));
    value("dup2 of a closed one", dup2(777, third));
    value("dup3", dup3(first, third, O_CLOEXEC) == third);
    value("F_GETFD", fcntl(third, F_GETFD));
    value("dup3 same", dup3(first, first, 0));
    echo(third);
    value("dup2 to -1", dup2(first, -1));
}

/* O_NONBLOCK belongs to the open file, not to the number. */
CASE(descriptors_ofl_shared, ACCELERATED)
{
    int fd = udp(host4, 5905), copy = dup(fd), on = 1;
    value("F_SETFL", fcntl(copy, F_SETFL, O_NONBLOCK));
    yes("O_NONBLOCK", fcntl(fd, F_GETFL) & O_NONBLOCK);
    receive(fd, 0);
    on = 0;
    value("FIONBIO", ioctl(fd, FIONBIO, &on));
    yes("O_NONBLOCK", fcntl(copy, F_GETFL) & O_NONBLOCK);
    for (int i = 0; i < 3; i++) {
        peer("late %s 6000 5905 5 1 40", host4);
        receive_from(copy, 0);
    }
    value("F_SETFL", fcntl(fd, F_SETFL, O_NONBLOCK));
    pid_t child = fork();
    if (child == 0) {
        receive(copy, 0);
        value("child's F_SETFL", fcntl(copy, F_SETFL, 0));
        _exit(0);
    }
    reap(child);
    yes("O_NONBLOCK", fcntl(fd, F_GETFL) & O_NONBLOCK);
}

/* The number of a closed socket is a plain file next. */
CASE(descriptors_reuse, ACCELERATED)
{
    for (int round = 0; round < 3; round++) {
        int fd = udp(host4, 5906);
        echo(fd);
        value("close", round == 1 ? syscall(SYS_close, fd) : close(fd));
        int file = open("/etc/hostname", O_RDONLY);
        yes("same number", file == fd);
        struct stat info;
        value("fstat", fstat(file, &info));
        yes("a file", S_ISREG(info.st_mode));
        char byte;
        value("recv", recv(file, &byte, 1, 0));
        value("read", read(file, &byte, 1));
        value("getsockname", getsockname(file, (struct sockaddr *)&info, &(socklen_t){16}));
        struct pollfd set = {file, POLLIN, 0};
        readiness("poll", poll(&set, 1, 0), (unsigned short)set.revents);
        value("close", close(file));
    }
}

/* closed through stdio, where no hook sees it */
CASE(descriptors_fclose, ACCELERATED)
{
    int fd = udp(host4, 5907);
    echo(fd);
    echo(fd);
    FILE *stream = fdopen(fd, "r+");
    yes("fdopen", stream != NULL);
    value("fclose", fclose(stream));
    int again = udp(host4, 5907);
    yes("same number", again == fd);
    echo(again);
    peer("send %s 6000 5907 5 1 0", host4);
    wait_for(again, POLLIN, 2000);
    receive_from(again, 0);
}

/* closed through stdio, and the number is a file then: its data must not go to the old socket */
CASE(descriptors_fclose_file, ACCELERATED)
{
    int fd = udp(host4, 5912);
    echo(fd);
    echo(fd);
    value("fclose", fclose(fdopen(fd, "r+")));
    int file = fileno(tmpfile());
    yes("same number", file == fd);
    value("write", write(file, "file", 4));
    value("lseek", lseek(file, 0, SEEK_SET));
    char text[8];
    value("read", read(file, text, sizeof text));
    int again = udp(host4, 5912);
    echo(again);
}

/* xinetd, sshd, inetd: close everything, then go on. */
CASE(descriptors_close_loop, ACCELERATED)
{
    int first = udp(host4, 5908);
    echo(first);
    for (int fd = 3; fd < 899; fd++)
        close(fd);
    receive(first, MSG_DONTWAIT);
    int second = udp(host4, 5908);
    echo(second);
    value("close_range", close_range(3, 898, 0));
    receive(second, MSG_DONTWAIT);
    int third = udp(host4, 5908);
    echo(third);
    value("SYS_close_range", syscall(SYS_close_range, 3, 898, 0));
    receive(third, MSG_DONTWAIT);
    int fourth = udp(host4, 5908);
    echo(fourth);
    value("close_range CLOEXEC", close_range(3, 898, CLOSE_RANGE_CLOEXEC));
    value("F_GETFD", fcntl(fourth, F_GETFD));
    echo(fourth);
    value("close_range backwards", close_range(10, 3, 0));
}

/* All descriptors above a number, ours included, as daemons do it at start. */
CASE(descriptors_close_all, ACCELERATED)
{
    int fd = udp(host4, 5909);
    for (int i = 0; i < 3; i++)
        echo(fd);
    for (int other = 3; other < 20000; other++)
        if (other != fd)
            close(other);
    int second = udp(host4, 5910);
    send_to(second, "echo", peer4, ECHO);
    wait_for(second, POLLIN, 2000);
    receive_from(second, 0);
    closefrom(3);
    int third = udp(host4, 5909);
    send_to(third, "echo", peer4, ECHO);
    wait_for(third, POLLIN, 2000);
    receive_from(third, 0);
}

static int blocked_fd;
static _Atomic pid_t blocked_thread;

static void *blocked(void *argument)
{
    (void)argument;
    char byte;
    errno = 0;
    blocked_thread = gettid();
    long got = recv(blocked_fd, &byte, 1, 0);
    return (void *)(long)(got < 0 ? -errno : got);
}

static void nothing(int number)
{
    (void)number;
}

/* Java closes a socket that a thread is blocked in: dup2 over it, then a signal. */
CASE(descriptors_dup2_preclose, ACCELERATED)
{
    struct sigaction action = {.sa_handler = nothing};
    sigaction(SIGUSR2, &action, NULL);
    int pair[2];
    value("socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    close(pair[1]);
    blocked_fd = udp(host4, 5911);
    for (int i = 0; i < 3; i++)
        echo(blocked_fd);
    pthread_t thread;
    pthread_create(&thread, NULL, blocked, NULL);
    await_sleep(&blocked_thread);
    value("dup2", dup2(pair[0], blocked_fd) == blocked_fd);
    pthread_kill(thread, SIGUSR2);
    void *got;
    pthread_join(thread, &got);
    line("blocked recv: %s", strerrorname_np((int)-(long)got));
    receive(blocked_fd, 0);
    value("close", close(blocked_fd));
    int again = udp(host4, 5911);
    echo(again);
}
