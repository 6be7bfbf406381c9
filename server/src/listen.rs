//! The sockets that a server listens at: TCP, Unix, and those that systemd opened for it.

use std::fs;
use std::io;
use std::net::TcpListener;
#[cfg(unix)]
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::tls::Tls;

/// Sockets of a server.
#[derive(Debug, Default)]
pub struct Listeners {
    /// For other machines, or this one's loopback.
    pub tcp: Vec<TcpListener>,
    /// For programs of this machine.
    #[cfg(unix)]
    pub unix: Vec<UnixListener>,
    /// HTTPS on the TCP sockets.
    pub tls: Option<Arc<Tls>>,
}

impl From<TcpListener> for Listeners {
    fn from(listener: TcpListener) -> Self {
        Self { tcp: vec![listener], ..Self::default() }
    }
}

impl Listeners {
    /// Whether no other machine can reach them.
    pub fn are_local(&self) -> bool {
        self.tcp.iter().all(|listener| listener.local_addr().is_ok_and(|address| address.ip().is_loopback()))
    }

    /// Where clients find them.
    pub fn urls(&self) -> Vec<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let tcp = self.tcp.iter().filter_map(|listener| Some(format!("{scheme}://{}", listener.local_addr().ok()?)));
        #[cfg(unix)]
        let unix = self.unix.iter().map(|listener| {
            let address = listener.local_addr().ok();
            let path = address.as_ref().and_then(|address| address.as_pathname());
            format!("unix:{}", path.unwrap_or(Path::new("(without a name)")).display())
        });
        #[cfg(not(unix))]
        let unix = std::iter::empty();
        tcp.chain(unix).collect()
    }

    /// Those that systemd opened for this process (socket activation); none outside of it.
    ///
    /// # Errors
    /// For a socket that is neither TCP nor Unix.
    pub fn from_systemd() -> io::Result<Self> {
        let mut listeners = Self::default();
        #[cfg(unix)]
        {
            let mut given = listenfd::ListenFd::from_env();
            for index in 0..given.len() {
                match given.take_tcp_listener(index) {
                    Ok(listener) => listeners.tcp.extend(listener),
                    Err(_) => listeners.unix.extend(given.take_unix_listener(index)?),
                }
            }
        }
        Ok(listeners)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        #[cfg(unix)]
        return self.tcp.is_empty() && self.unix.is_empty();
        #[cfg(not(unix))]
        return self.tcp.is_empty();
    }
}

/// The file of a Unix socket; removed when dropped.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = fs::remove_file(&self.0);
    }
}

/// Listens at a path. The socket is for the owner of this process only. One that a dead server left is replaced.
///
/// # Errors
/// When another server listens there, or the path is taken by something else.
#[cfg(unix)]
pub fn at_path(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};

    if let Ok(metadata) = fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
        }
        match UnixStream::connect(path) {
            Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another server listens there")),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(error) => return Err(error),
        }
    }
    let listener = UnixListener::bind(path)?;
    let file = SocketFile(path.to_owned());
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok((listener, file))
}

/// Tells systemd (or who else started this process) how it is, if that was asked for.
pub fn notify(state: State) {
    #[cfg(target_os = "linux")]
    {
        use sd_notify::NotifyState;
        let state = match state {
            State::Ready => NotifyState::Ready,
            State::Stopping => NotifyState::Stopping,
        };
        if let Err(error) = sd_notify::notify(&[state]) {
            tracing::debug!("the service manager wasn't told: {error}");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = state;
}

/// What a service manager wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Requests are answered.
    Ready,
    /// It ends.
    Stopping,
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_over_from_the_dead_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shimmy.sock");
        let (listener, file) = at_path(&path).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(at_path(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let listeners = Listeners { unix: vec![listener], ..Listeners::default() };
        assert!(listeners.are_local());
        assert_eq!(listeners.urls(), [format!("unix:{}", path.display())]);
        // Like a process that was killed.
        drop(listeners);
        std::mem::forget(file);
        assert!(path.exists());
        let (_listener, file) = at_path(&path).unwrap();
        drop(file);
        assert!(!path.exists());
        fs::write(&path, "mine").unwrap();
        assert_eq!(at_path(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }
}
