//! What runs on each connection, and the end of those on which nothing does.
//!
//! The HTTP library times the head of a connection's first request, and how long a connection lies still between
//! requests, but not a later head that begins and stops: its first byte ends the one clock and starts no other. A client
//! could hold its connection so for ever. Therefore requests are counted here, and a connection on which none has run for
//! longer than it may lie still and a head may take together is shut down, whatever bytes have come.
//!
//! The library lends a connection only for a moment when it begins, so a second handle of its socket is kept until it ends.

use std::any::Any;
use std::collections::HashMap;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::Error;
use actix_web::body::{BodySize, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::middleware::Next;
use actix_web::rt::net::TcpStream;
use actix_web::web::Bytes;
use socket2::{SockRef, Socket};

/// A whole body has been handed over when its last bytes may have a long way to go yet: they get the time that the body
/// takes at this rate, which is also what clients are given for theirs.
const BYTES_PER_SECOND: u64 = 32 << 10;
/// How late a connection may be shut down. A look at a thousand takes 20 µs.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// The TCP connection below what the library lends.
pub fn tcp_of(connection: &dyn Any) -> Option<&TcpStream> {
    let plain = connection.downcast_ref::<TcpStream>();
    plain.or_else(|| connection.downcast_ref::<TlsStream<TcpStream>>().map(|stream| stream.get_ref().0))
}

fn socket_of(connection: &dyn Any) -> Option<SockRef<'_>> {
    let tcp = tcp_of(connection).map(SockRef::from);
    #[cfg(unix)]
    return tcp.or_else(|| connection.downcast_ref::<tokio::net::UnixStream>().map(SockRef::from));
    #[cfg(not(unix))]
    return tcp;
}

/// All that are open.
#[derive(Debug, Default)]
pub struct Connections {
    open: Mutex<HashMap<u64, Open>>,
    next: AtomicU64,
}

#[derive(Debug)]
struct Open {
    socket: Socket,
    work: Arc<Mutex<Work>>,
}

/// What runs on a connection.
#[derive(Debug)]
struct Work {
    /// Requests whose response isn't handed over.
    requests: usize,
    /// Since when there are none.
    rests_since: Instant,
    is_shut: bool,
}

/// A panic can't leave half of anything here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connections {
    /// Takes note of a connection that begins; `None` for one that can't be shut down from outside.
    pub fn open(self: &Arc<Self>, connection: &dyn Any) -> Option<Place> {
        let socket = match socket_of(connection)?.try_clone() {
            Ok(socket) => socket,
            Err(error) => {
                tracing::debug!("a connection may be held by half a request: {error}");
                return None;
            }
        };
        Some(self.enter(socket))
    }

    fn enter(self: &Arc<Self>, socket: Socket) -> Place {
        let work = Arc::new(Mutex::new(Work { requests: 0, rests_since: Instant::now(), is_shut: false }));
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.open).insert(number, Open { socket, work: Arc::clone(&work) });
        Place { connections: Arc::clone(self), number, work }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        lock(&self.open).len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shuts those down on which nothing has run for longer than `limit`; how many.
    fn shut_down_resting(&self, limit: Duration) -> usize {
        let now = Instant::now();
        let mut count = 0;
        for Open { socket, work } in lock(&self.open).values() {
            // No request can begin meanwhile.
            let mut work = lock(work);
            if work.requests > 0 || work.is_shut || now.saturating_duration_since(work.rests_since) <= limit {
                continue;
            }
            work.is_shut = true;
            count += 1;
            // The library sees the end of the stream. Whoever has gone already needs no word.
            let _ = socket.shutdown(Shutdown::Both);
        }
        count
    }
}

/// Shuts connections down on which nothing has run for longer than `limit`, for ever.
pub async fn sweep(connections: Arc<Connections>, limit: Duration) {
    let mut tick = tokio::time::interval(SWEEP_EVERY.min(limit / 4).max(Duration::from_millis(1)));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let count = connections.shut_down_resting(limit);
        if count > 0 {
            tracing::debug!("{count} connections on which no whole request came are closed");
        }
    }
}

/// A connection's own entry, among its data. Dropped with it, and then its second handle is closed.
#[derive(Debug)]
pub struct Place {
    connections: Arc<Connections>,
    number: u64,
    work: Arc<Mutex<Work>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let gone = lock(&self.connections.open).remove(&self.number);
        // Closed when others may go on.
        drop(gone);
    }
}

impl Place {
    fn begin(&self) -> Running {
        lock(&self.work).requests += 1;
        Running { work: Arc::clone(&self.work), bytes: 0 }
    }
}

/// A request, until its response is handed over.
#[derive(Debug)]
struct Running {
    work: Arc<Mutex<Work>>,
    /// Of the response's body.
    bytes: u64,
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut work = lock(&self.work);
        work.requests -= 1;
        let gone_by = Instant::now() + Duration::from_secs(self.bytes / BYTES_PER_SECOND);
        work.rests_since = work.rests_since.max(gone_by);
    }
}

/// Counts requests on their connections. It stands before everything else.
///
/// # Errors
/// Those of what comes after it.
pub async fn count(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let running = request.conn_data::<Place>().map(Place::begin);
    let response = next.call(request).await?;
    Ok(response.map_body(|_, body| Counted { body: Box::pin(body), running }))
}

/// A body that keeps its connection at work until it is dropped: a stream, or a WebSocket, for as long as it lasts.
struct Counted<B> {
    body: Pin<Box<B>>,
    running: Option<Running>,
}

impl<B: MessageBody> MessageBody for Counted<B> {
    type Error = B::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, B::Error>>> {
        let next = self.body.as_mut().poll_next(cx);
        if let (Some(running), Poll::Ready(Some(Ok(bytes)))) = (&mut self.running, &next) {
            running.bytes += bytes.len() as u64;
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const NOTHING: Duration = Duration::ZERO;

    fn connected(connections: &Arc<Connections>) -> (TcpStream, Place) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let (server, _) = listener.accept().unwrap();
        let place = connections.enter(SockRef::from(&server).try_clone().unwrap());
        // The library's own handle isn't needed here.
        drop(server);
        std::thread::sleep(Duration::from_millis(2));
        (client, place)
    }

    #[test]
    fn what_rests_too_long_is_shut_down_once_and_what_works_is_not() {
        let connections = Arc::new(Connections::default());
        let (mut client, place) = connected(&connections);
        let (first, second) = (place.begin(), place.begin());
        drop(first);
        assert_eq!(connections.shut_down_resting(NOTHING), 0, "one request runs");
        drop(second);
        assert_eq!(connections.shut_down_resting(Duration::from_secs(60)), 0, "it rests for a moment only");
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!((connections.shut_down_resting(NOTHING), connections.shut_down_resting(NOTHING)), (1, 0));
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "the client sees the end");
        drop(place);
        assert!(connections.is_empty());
    }

    #[test]
    fn a_large_response_gets_time_to_leave() {
        let connections = Arc::new(Connections::default());
        let (mut client, place) = connected(&connections);
        let mut large = place.begin();
        large.bytes = 3600 * BYTES_PER_SECOND;
        drop(large);
        // A small one after it doesn't take the time away.
        drop(place.begin());
        assert_eq!(connections.shut_down_resting(NOTHING), 0);
        // With the entry the handle goes, and nobody else has one.
        drop(place);
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
}
