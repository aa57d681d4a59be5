/* Streams over connections: fdopen, fprintf, fgets, fclose. */
#include "case.h"

#include <stdarg.h>

static void get_line(FILE *from)
{
    char text[64] = "";
    errno = 0;
    char *got = fgets(text, sizeof text, from);
    line("fgets %s%s%s", got ? text : "nothing", feof(from) ? ", at the end" : "",
         ferror(from) ? ", error" : "");
}

static int format(int fd, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vdprintf(fd, format, arguments);
    va_end(arguments);
    return length;
}

CASE(tcp_stdio_two, ACCELERATED)
{
    int fd = dial(peer4, T_ECHO);
    FILE *out = fdopen(dup(fd), "w"), *in = fdopen(fd, "r");
    yes("fileno", fileno(in) == fd);
    value("fprintf", fprintf(out, "line %d\nand %s\nrest", 1, "two"));
    value("fflush", fflush(out));
    get_line(in);
    get_line(in);
    value("vdprintf", format(fileno(out), " of it %d\n", 3));
    get_line(in);
    for (int i = 0; i < 30000; i++)
        fputs("0123456789\n", out);
    value("fflush", fflush(out));
    long right = 0;
    char text[64];
    for (int i = 0; i < 30000 && fgets(text, sizeof text, in); i++)
        right += strcmp(text, "0123456789\n") == 0;
    line("%ld lines", right);
    value("shutdown", shutdown(fileno(out), SHUT_WR));
    get_line(in);
    value("fclose", fclose(out));
    value("fclose", fclose(in));
    value("closed", fcntl(fd, F_GETFD));
    line("%s", peer("dialled"));
}

CASE(tcp_stdio_one, ACCELERATED)
{
    int fd = listener(host4, 6240, 5);
    line("%s", peer("dial %s 6240 s10 g8 w", host4));
    int one = accept(fd, NULL, NULL);
    FILE *stream = fdopen(one, "r+b");
    yes("fdopen", stream != NULL);
    char bytes[16] = "";
    value("fread", (long)fread(bytes, 1, 10, stream));
    line("  %s", bytes);
    value("fseek", fseek(stream, 0, SEEK_CUR));
    value("ftell", ftell(stream));
    value("setvbuf", setvbuf(stream, NULL, _IOLBF, 0));
    value("fputs", fputs("answer!\n", stream));
    value("fclose", fclose(stream));
    value("closed", fcntl(one, F_GETFD));
    line("%s", peer("dialled"));
    yes("bad mode", fdopen(fd, "q") == NULL && errno == EINVAL);
}

CASE(tcp_stdio_reset, ACCELERATED)
{
    signal(SIGPIPE, SIG_IGN);
    int fd = dial(peer4, T_RESET);
    FILE *stream = fdopen(fd, "w");
    value("fputs", fputs("xyz", stream));
    value("fflush", fflush(stream));
    wait_for(fd, POLLIN, 3000);
    value("fputs", fputs("xyz", stream));
    value("fflush", fflush(stream));
    yes("ferror", ferror(stream));
    value("fclose", fclose(stream));
}
