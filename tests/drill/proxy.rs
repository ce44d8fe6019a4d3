//! A piece of network between two programs, which can be cut, silenced and slowed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How many bytes are carried at once.
const CARRY_BYTES: usize = 16 << 10;

/// What the network does to what passes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Mode {
    /// Carries it.
    Pass,
    /// Carries nothing and tells nobody: a half-open connection.
    Silent,
    /// Carries every piece this much later.
    Slow(Duration),
    /// Carries it, but PostgreSQL's notifications come to another channel than they went to.
    Deaf,
}

/// A proxy on a port of its own.
pub struct Proxy {
    /// Where it accepts.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    target: Mutex<Option<SocketAddr>>,
    mode: Mutex<watch::Sender<Mode>>,
    /// The modes, silent for ever, of connections that were forgotten.
    forgotten: Mutex<Vec<watch::Sender<Mode>>>,
    /// Counts the cuts: a connection ends when it changes.
    cuts: watch::Sender<u64>,
    /// How many more bytes go back to those who connected before everything is cut; negative while nothing is planned.
    allowance: AtomicI64,
}

impl Proxy {
    /// A proxy to nowhere yet.
    pub async fn start() -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            target: Mutex::default(),
            mode: Mutex::new(watch::Sender::new(Mode::Pass)),
            forgotten: Mutex::default(),
            cuts: watch::Sender::new(0),
            allowance: AtomicI64::new(-1),
        });
        let accepting = shared.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(accepting.clone().carry(near));
            }
        });
        Proxy { address, shared }
    }

    /// Where new connections lead.
    pub fn lead_to(&self, target: Option<SocketAddr>) {
        *self.shared.target.lock().unwrap() = target;
    }

    /// Changes what the network does, for all connections that are not forgotten.
    pub fn set(&self, mode: Mode) {
        self.shared.mode.lock().unwrap().send_replace(mode);
    }

    /// Forgets the connections that there are, as a router does that was started anew: they stay silent, new ones pass.
    pub fn forget(&self) {
        self.set(Mode::Silent);
        let old = std::mem::replace(&mut *self.shared.mode.lock().unwrap(), watch::Sender::new(Mode::Pass));
        self.shared.forgotten.lock().unwrap().push(old);
    }

    /// Cuts all connections now.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Cuts all connections once this many more bytes have gone to those who connected.
    pub fn cut_after(&self, bytes: u32) {
        self.shared.allowance.store(bytes.into(), Ordering::SeqCst);
    }
}

impl Shared {
    async fn carry(self: Arc<Self>, near: TcpStream) {
        let target = *self.target.lock().unwrap();
        let Some(target) = target else { return };
        let Ok(far) = TcpStream::connect(target).await else { return };
        // Neither matters to what is tested.
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        let mut cuts = self.cuts.subscribe();
        let mode = self.mode.lock().unwrap().subscribe();
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        tokio::select! {
            _ = cuts.changed() => {}
            () = self.pump(near_read, far_write, mode.clone(), false) => {}
            () = self.pump(far_read, near_write, mode, true) => {}
        }
    }

    /// One direction, until it ends. Where one ends the other is cut too, as by a network that forgot the connection.
    async fn pump(
        &self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        mut mode: watch::Receiver<Mode>,
        counted: bool,
    ) {
        let mut bytes = vec![0; CARRY_BYTES];
        loop {
            // Not even read, so that what is sent meanwhile fills up.
            let heard =
                async |mode: &mut watch::Receiver<Mode>| *mode.wait_for(|mode| *mode != Mode::Silent).await.unwrap();
            heard(&mut mode).await;
            let Ok(count @ 1..) = from.read(&mut bytes).await else { return };
            match heard(&mut mode).await {
                Mode::Slow(delay) => tokio::time::sleep(delay).await,
                Mode::Deaf => misdirect(&mut bytes[..count]),
                Mode::Pass | Mode::Silent => {}
            }
            let passed = if counted { self.spend(count) } else { count };
            if to.write_all(&bytes[..passed]).await.is_err() {
                return;
            }
            if passed < count {
                // Never a hole: what was held back ends the connection, and with it all others.
                self.allowance.store(-1, Ordering::SeqCst);
                self.cuts.send_modify(|cuts| *cuts += 1);
                return;
            }
        }
    }

    /// How many of these bytes may still pass.
    fn spend(&self, count: usize) -> usize {
        let mut passed = count;
        let spent = self.allowance.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |allowance| {
            passed = if allowance < 0 { count } else { count.min(allowance as usize) };
            (allowance >= 0).then(|| allowance - passed as i64)
        });
        if spent.is_ok() { passed } else { count }
    }
}

/// Changes the channel of notifications: after their letter come a length and a process, of four bytes each.
fn misdirect(bytes: &mut [u8]) {
    const CHANNEL: &[u8] = b"switchboard";
    for at in 9..bytes.len().saturating_sub(CHANNEL.len()) {
        if bytes[at - 9] == b'A' && bytes[at..].starts_with(CHANNEL) {
            bytes[at] = b'S';
        }
    }
}
