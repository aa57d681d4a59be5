// An echo server with one selector: java NioEcho.java ADDRESS, port 9000.

import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;

public class NioEcho {
    public static void main(String[] arguments) throws IOException {
        Selector selector = Selector.open();
        ServerSocketChannel listener = ServerSocketChannel.open();
        listener.bind(new InetSocketAddress(arguments[0], 9000));
        listener.configureBlocking(false);
        listener.register(selector, SelectionKey.OP_ACCEPT);
        while (true) {
            selector.select();
            for (SelectionKey key : selector.selectedKeys()) {
                if (key.isAcceptable()) {
                    SocketChannel connection = listener.accept();
                    if (connection != null) {
                        connection.configureBlocking(false);
                        ByteBuffer buffer = ByteBuffer.allocateDirect(65536);
                        connection.register(selector, SelectionKey.OP_READ, buffer);
                    }
                } else {
                    move(key);
                }
            }
            selector.selectedKeys().clear();
        }
    }

    // Reads what is there if the buffer is empty, writes what the buffer has.
    private static void move(SelectionKey key) throws IOException {
        SocketChannel connection = (SocketChannel) key.channel();
        ByteBuffer buffer = (ByteBuffer) key.attachment();
        if (key.isReadable()) {
            buffer.clear();
            if (connection.read(buffer) < 0) {
                connection.close();
                return;
            }
            buffer.flip();
        }
        connection.write(buffer);
        key.interestOps(buffer.hasRemaining() ? SelectionKey.OP_WRITE : SelectionKey.OP_READ);
    }
}
