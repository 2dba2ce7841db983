//! A link as long as from one continent to the next, in front of a server of this machine.
//!
//! It is a model: a round trip and a window for each connection, whose rate is the one by the other (RFC
//! 7323, section 1.1). Nothing is lost, no connection starts slowly, and they do not share a bandwidth.

use std::{io, sync::Arc, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime::Runtime,
    sync::{Semaphore, mpsc},
    time::{Instant, sleep, sleep_until},
};

/// From Frankfurt to San Francisco and back.
pub const ROUND_TRIP: Duration = Duration::from_millis(150);
/// What a client lets be on its way: about what Linux makes of its `net.ipv4.tcp_rmem`.
pub const WINDOW_BYTES: usize = 4 << 20;
const READ_BYTES: usize = 64 << 10;

/// Carries connections for as long as it is there.
pub struct Ocean {
    _runtime: Runtime,
}

impl Ocean {
    /// Between `near`, where it listens, and the server at `far`.
    ///
    /// # Panics
    /// When there is no such port.
    pub fn between(near: &str, far: &str) -> Self {
        let (near, far) = (near.to_owned(), far.to_owned());
        let runtime = Runtime::new().expect("threads");
        let listener = runtime.block_on(TcpListener::bind(near)).expect("a port of the sandbox");
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, far.clone()));
            }
        });
        Self { _runtime: runtime }
    }
}

/// A connection that ends on one side ends on the other, and that is all there is to it.
async fn carry(client: TcpStream, far: String) -> io::Result<()> {
    // The handshake.
    sleep(ROUND_TRIP).await;
    let server = TcpStream::connect(far).await?;
    let (mut requests, to_client) = client.into_split();
    let (answers, mut to_server) = server.into_split();
    tokio::select! {
        sent = copy(&mut requests, &mut to_server) => sent.map(drop),
        received = delay(answers, to_client) => received,
    }
}

/// All of the round trip is spent on the way back.
async fn delay(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> io::Result<()> {
    let window = Arc::new(Semaphore::new(WINDOW_BYTES));
    let (sender, mut on_its_way) = mpsc::unbounded_channel();
    let send = async {
        let mut bytes = BytesMut::with_capacity(READ_BYTES);
        while from.read_buf(&mut bytes).await? > 0 {
            let size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
            let room = Arc::clone(&window).acquire_many_owned(size).await;
            let arrival = Instant::now() + ROUND_TRIP;
            sender.send((arrival, bytes.split().freeze(), room)).map_err(io::Error::other)?;
            bytes.reserve(READ_BYTES);
        }
        drop(sender);
        Ok(())
    };
    let arrive = async {
        while let Some((arrival, bytes, _room)) = on_its_way.recv().await {
            sleep_until(arrival).await;
            to.write_all(&bytes).await?;
        }
        Ok(())
    };
    tokio::try_join!(send, arrive).map(drop)
}
