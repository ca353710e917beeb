//! A TCP relay that can be cut (both sides see their connection die) and frozen (bytes stop, connections stay).

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Clone, Copy, Default)]
struct Weather {
    /// Connections made before this was last raised are cut.
    cuts: u64,
    frozen: bool,
}

pub struct Relay {
    pub address: SocketAddr,
    weather: watch::Sender<Weather>,
    gone: CancellationToken,
}

impl Relay {
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (weather, seen) = watch::channel(Weather::default());
        let gone = CancellationToken::new();
        let accepting = async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, target, seen.clone()));
            }
        };
        tokio::spawn(gone.clone().run_until_cancelled_owned(accepting));
        Self { address, weather, gone }
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }

    pub fn cut(&self) {
        self.weather.send_modify(|weather| weather.cuts += 1);
    }

    pub fn freeze(&self, frozen: bool) {
        self.weather.send_modify(|weather| weather.frozen = frozen);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.gone.cancel();
    }
}

async fn carry(client: TcpStream, target: SocketAddr, weather: watch::Receiver<Weather>) {
    let Ok(server) = TcpStream::connect(target).await else { return };
    client.set_nodelay(true).expect("a socket");
    server.set_nodelay(true).expect("a socket");
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let cuts = weather.borrow().cuts;
    let mut cut = weather.clone();
    tokio::select! {
        () = pump(from_client, to_server, weather.clone()) => {}
        () = pump(from_server, to_client, weather) => {}
        _ = cut.wait_for(|weather| weather.cuts > cuts) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut weather: watch::Receiver<Weather>) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        if weather.wait_for(|weather| !weather.frozen).await.is_err() {
            return;
        }
        let count = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => count,
        };
        if weather.wait_for(|weather| !weather.frozen).await.is_err() || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
