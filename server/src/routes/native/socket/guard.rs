//! Bounds what a peer may announce. The decoder behind this gathers a frame until all of it is there and only then looks at
//! its size, so a frame that announces terabytes would fill the memory; this looks at each header as it passes.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use actix_web::dev::Payload;
use actix_web::error::PayloadError;
use actix_web::web::Bytes;
use actix_ws::CloseCode;
use futures_core::Stream;

/// Largest payload of pings, pongs and closes (RFC 6455, 5.5).
const MAX_CONTROL_BYTES: u64 = 125;
/// Longest header: 2 bytes, 8 of length, 4 of mask.
const MAX_HEADER_BYTES: usize = 14;

/// Follows the frames in a stream of bytes.
#[derive(Debug, Default)]
struct Frames {
    header: [u8; MAX_HEADER_BYTES],
    /// Bytes of the header so far.
    filled: usize,
    /// Bytes of the payload that are still to come.
    left: u64,
    /// Bytes of the message so far, of which this is a part.
    message: u64,
}

impl Frames {
    /// Looks at the next bytes of the stream.
    fn pass(&mut self, mut bytes: &[u8], max_message_bytes: u64) -> Result<(), CloseCode> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let skipped = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= skipped as u64;
                bytes = &bytes[skipped..];
                continue;
            }
            self.header[self.filled] = bytes[0];
            self.filled += 1;
            bytes = &bytes[1..];
            if let Some(length) = self.announced() {
                self.filled = 0;
                self.left = length;
                self.check(length, max_message_bytes)?;
            }
        }
        Ok(())
    }

    /// The length of the payload once the header is whole.
    fn announced(&self) -> Option<u64> {
        let (extended, mask) = match (self.filled, self.header[1]) {
            (0 | 1, _) => return None,
            (_, second) => {
                let extended = match second & 0x7f {
                    126 => 2,
                    127 => 8,
                    _ => 0,
                };
                (extended, if second & 0x80 == 0 { 0 } else { 4 })
            }
        };
        if self.filled < 2 + extended + mask {
            return None;
        }
        Some(match extended {
            0 => u64::from(self.header[1] & 0x7f),
            _ => self.header[2..2 + extended].iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
        })
    }

    fn check(&mut self, length: u64, max_message_bytes: u64) -> Result<(), CloseCode> {
        let (is_last, is_control) = (self.header[0] & 0x80 != 0, self.header[0] & 0x08 != 0);
        if is_control {
            return if length > MAX_CONTROL_BYTES { Err(CloseCode::Protocol) } else { Ok(()) };
        }
        self.message = self.message.saturating_add(length);
        if self.message > max_message_bytes {
            return Err(CloseCode::Size);
        }
        if is_last {
            self.message = 0;
        }
        Ok(())
    }
}

/// A request's payload that breaks off before a message becomes too large.
pub struct Guard {
    payload: Payload,
    frames: Frames,
    max_message_bytes: u64,
    broken: Rc<Cell<Option<CloseCode>>>,
}

impl Guard {
    /// Guards `payload`. When it breaks off, `broken` says with which code the socket is to be closed.
    pub fn new(payload: Payload, max_message_bytes: usize, broken: Rc<Cell<Option<CloseCode>>>) -> Self {
        Self { payload, frames: Frames::default(), max_message_bytes: max_message_bytes as u64, broken }
    }
}

impl Stream for Guard {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let next = Pin::new(&mut this.payload).poll_next(context);
        if let Poll::Ready(Some(Ok(bytes))) = &next
            && let Err(code) = this.frames.pass(bytes, this.max_message_bytes)
        {
            this.broken.set(Some(code));
            return Poll::Ready(Some(Err(PayloadError::Overflow)));
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A masked frame with zeros in it.
    fn frame(first: u8, length: u64) -> Vec<u8> {
        let mut frame = vec![first];
        match length {
            0..126 => frame.push(0x80 | length as u8),
            126..0x10000 => {
                frame.push(0x80 | 126);
                frame.extend((length as u16).to_be_bytes());
            }
            _ => {
                frame.push(0x80 | 127);
                frame.extend(length.to_be_bytes());
            }
        }
        frame.extend([1, 2, 3, 4]);
        frame.resize(frame.len() + usize::try_from(length.min(1000)).unwrap(), 0);
        frame
    }

    fn pass(bytes: &[u8], piece: usize) -> Result<(), CloseCode> {
        let mut frames = Frames::default();
        bytes.chunks(piece).try_for_each(|piece| frames.pass(piece, 1000))
    }

    #[test]
    fn messages_up_to_the_limit_pass_however_they_are_cut() {
        let pieces = [
            frame(0x81, 1000),
            frame(0x01, 600),
            frame(0x89, 125),
            frame(0x80, 400),
            frame(0x82, 125),
            frame(0x81, 126),
            frame(0x88, 2),
            frame(0x81, 0),
        ];
        let all = pieces.concat();
        for piece in [1, 2, 3, 7, 100, all.len()] {
            assert_eq!(pass(&all, piece), Ok(()), "pieces of {piece}");
        }
    }

    #[test]
    fn what_is_too_large_is_known_by_its_header() {
        for (bytes, code) in [
            (frame(0x81, 1001), CloseCode::Size),
            (frame(0x82, u64::MAX), CloseCode::Size),
            (frame(0x81, 70_000), CloseCode::Size),
            ([frame(0x01, 600), frame(0x80, 401)].concat(), CloseCode::Size),
            ([frame(0x01, 600), frame(0x00, 300), frame(0x8a, 5), frame(0x00, 101)].concat(), CloseCode::Size),
            (frame(0x89, 126), CloseCode::Protocol),
            (frame(0x88, 1 << 40), CloseCode::Protocol),
        ] {
            for piece in [1, 5, bytes.len()] {
                assert_eq!(pass(&bytes, piece), Err(code), "{:?}", &bytes[..6]);
            }
        }
        assert_eq!(pass(&frame(0x81, u64::MAX)[..14], 14), Err(CloseCode::Size), "nothing of it has come");
    }
}
