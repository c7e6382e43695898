//! Control requests: one small message, one small answer, a deadline.
//!
//! **Shape** on the wire, both ways: a big-endian `u32`, then that many bytes.

use std::io;
use std::iter;
use std::time::Duration;

use bytes::Bytes;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::StreamProtocol;
use libp2p::request_response::{self, ProtocolSupport};

/// Longest request, in bytes.
pub const REQUEST_LEN_MAX: usize = 64 * 1024;

/// Longest response, in bytes: any chunk and what is said of it.
pub const RESPONSE_LEN_MAX: usize = (1024 + 64) * 1024;

/// From sending a request to having read all of its response.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(5);

/// Requests that wait for one peer's responses at a time. One more fails at once.
pub const REQUESTS_PER_PEER_MAX: usize = 16;

const PROTOCOL: StreamProtocol = StreamProtocol::new("/attic-node/sync/1");

/// Of one connection, both ways. What a peer asks beyond it is dropped.
const STREAMS_MAX: usize = 2 * REQUESTS_PER_PEER_MAX;

pub(crate) type Behaviour = request_response::Behaviour<Codec>;
pub(crate) type Event = request_response::Event<Bytes, Bytes>;

pub(crate) fn behaviour() -> Behaviour {
    let config = request_response::Config::default()
        .with_request_timeout(REQUEST_DEADLINE)
        .with_max_concurrent_streams(STREAMS_MAX);
    request_response::Behaviour::new(iter::once((PROTOCOL, ProtocolSupport::Full)), config)
}

#[derive(Clone, Default)]
pub(crate) struct Codec;

impl request_response::Codec for Codec {
    type Protocol = StreamProtocol;
    type Request = Bytes;
    type Response = Bytes;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Bytes>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io, REQUEST_LEN_MAX).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Bytes>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io, RESPONSE_LEN_MAX).await
    }

    async fn write_request<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        body: Bytes,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, &body, REQUEST_LEN_MAX).await
    }

    async fn write_response<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        body: Bytes,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, &body, RESPONSE_LEN_MAX).await
    }
}

async fn read<T>(io: &mut T, len_max: usize) -> io::Result<Bytes>
where
    T: AsyncRead + Unpin + Send,
{
    let mut len = [0; 4];
    io.read_exact(&mut len).await?;
    let len = u32::from_be_bytes(len);
    if usize::try_from(len).map_or(true, |len| len > len_max) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a message of {len} bytes"),
        ));
    }
    // Grows with what arrives, not with what was announced.
    let mut body = Vec::new();
    io.take(u64::from(len)).read_to_end(&mut body).await?;
    if body.len() != len as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(body.into())
}

async fn write<T>(io: &mut T, body: &[u8], len_max: usize) -> io::Result<()>
where
    T: AsyncWrite + Unpin + Send,
{
    let len = u32::try_from(body.len()).ok();
    let Some(len) = len.filter(|_| body.len() <= len_max) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a message of {} bytes", body.len()),
        ));
    };
    io.write_all(&len.to_be_bytes()).await?;
    io.write_all(body).await?;
    io.close().await
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use futures::io::Cursor;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_announced_length_beyond_the_bound_is_refused_unread() {
        for (len, max) in [(u32::MAX, RESPONSE_LEN_MAX), (65_537, REQUEST_LEN_MAX)] {
            let mut io = Cursor::new([&len.to_be_bytes()[..], &[0; 8]].concat());
            let error = block_on(read(&mut io, max)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert_eq!(io.position(), 4);
        }
    }

    #[test]
    fn a_body_that_ends_early_is_refused() {
        let mut io = Cursor::new([&4u32.to_be_bytes()[..], &[0; 3]].concat());
        let error = block_on(read(&mut io, REQUEST_LEN_MAX)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_body_beyond_the_bound_is_not_written() {
        let mut io = Cursor::new(Vec::new());
        assert!(block_on(write(&mut io, &[0; 9], 8)).is_err());
        assert!(io.into_inner().is_empty());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(body: Vec<u8>) {
            let mut io = Cursor::new(Vec::new());
            block_on(write(&mut io, &body, REQUEST_LEN_MAX)).unwrap();
            let mut io = Cursor::new(io.into_inner());
            prop_assert_eq!(block_on(read(&mut io, REQUEST_LEN_MAX)).unwrap(), body);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = block_on(read(&mut Cursor::new(bytes), REQUEST_LEN_MAX));
        }
    }
}
