//! An echo server on tokio's threads: `tokio-echo ADDRESS:PORT`.

use std::io;

use tokio::net::{TcpListener, TcpStream};

#[tokio::main(worker_threads = 2)]
async fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_default();
    let listener = TcpListener::bind(address).await?;
    loop {
        let (connection, _) = listener.accept().await?;
        tokio::spawn(echo(connection));
    }
}

/// Sends back what comes, until the peer ends its side.
async fn echo(mut connection: TcpStream) {
    let (mut from, mut to) = connection.split();
    // A peer that goes away is no error of the server's.
    let _ = tokio::io::copy(&mut from, &mut to).await;
    let _ = tokio::io::AsyncWriteExt::shutdown(&mut to).await;
}
