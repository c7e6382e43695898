//! A small HTTP/1.1 client that can also say what no proper client would.
//!
//! Blocking, one thread per connection, so that a test decides byte by byte what is sent and sees
//! byte by byte what comes back. [`Response::complete`] tells a cut body from a whole one.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Longest silence of a server before a read fails.
pub const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A request to be sent.
#[derive(Clone, Debug)]
pub struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

impl Request {
    /// A request without a body.
    pub fn new(method: &str, target: &str) -> Request {
        let (method, target) = (method.to_owned(), target.to_owned());
        Request {
            method,
            target,
            headers: Vec::new(),
            body: None,
        }
    }

    /// `GET target`.
    pub fn get(target: &str) -> Request {
        Request::new("GET", target)
    }

    /// `HEAD target`.
    pub fn head(target: &str) -> Request {
        Request::new("HEAD", target)
    }

    /// `PUT target` with a body.
    pub fn put(target: &str, body: impl Into<Vec<u8>>) -> Request {
        Request {
            body: Some(body.into()),
            ..Request::new("PUT", target)
        }
    }

    /// `POST target` with a body.
    pub fn post(target: &str, body: impl Into<Vec<u8>>) -> Request {
        Request {
            body: Some(body.into()),
            ..Request::new("POST", target)
        }
    }

    /// With one more header. `Host` and `Content-Length` are sent unless given here.
    pub fn header(mut self, name: &str, value: &str) -> Request {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With a bearer token.
    pub fn token(self, token: &str) -> Request {
        self.header("Authorization", &format!("Bearer {token}"))
    }

    /// Sends it over a connection of its own and reads the answer.
    ///
    /// **Errors**: the connection cannot be made, or it ends before the head of an answer.
    pub fn send(&self, address: SocketAddr) -> Result<Response> {
        Connection::open(address)?.send(self)
    }

    fn to_bytes(&self, address: SocketAddr) -> Vec<u8> {
        let has = |name: &str| {
            self.headers
                .iter()
                .any(|(n, _)| n.eq_ignore_ascii_case(name))
        };
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        if !has("host") {
            head += &format!("Host: {address}\r\n");
        }
        if let Some(body) = &self.body
            && !has("content-length")
            && !has("transfer-encoding")
        {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        let mut bytes = (head + "\r\n").into_bytes();
        bytes.extend_from_slice(self.body.as_deref().unwrap_or_default());
        bytes
    }
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Names in lower case, values as sent, in order.
    pub headers: Vec<(String, String)>,
    /// The body, as far as it came, without transfer encoding.
    pub body: Vec<u8>,
    /// Whether the whole body came. One that only the end of the connection delimits counts as cut.
    pub complete: bool,
}

impl Response {
    /// Value of the first header of this (lower-case) name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One connection, kept alive between requests.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    address: SocketAddr,
    /// Came after what was read so far.
    pending: Vec<u8>,
}

impl Connection {
    /// Connects.
    ///
    /// **Errors**: the operating system's.
    pub fn open(address: SocketAddr) -> Result<Connection> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        Ok(Connection {
            stream,
            address,
            pending: Vec::new(),
        })
    }

    /// Sends a request and reads its answer. An answer that comes while the body is still being
    /// sent is read as well.
    ///
    /// **Errors**: the connection ends before the head of an answer.
    pub fn send(&mut self, request: &Request) -> Result<Response> {
        let sent = self.stream.write_all(&request.to_bytes(self.address));
        let answer = self.read_response(request.method == "HEAD");
        // A server may refuse a body and close: its answer matters more than our broken pipe.
        answer.or_else(|error| sent.and(Err(error)))
    }

    /// Sends bytes as they are.
    ///
    /// **Errors**: the server has closed the connection.
    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes)
    }

    /// Closes the sending half.
    pub fn finish_sending(&self) {
        // It may be closed already, which is as good.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Reads the head of an answer and leaves its body unread.
    ///
    /// **Errors**: the connection ends or is silent before the head is whole.
    pub fn read_head(&mut self) -> Result<Response> {
        let head = loop {
            if let Some(end) = find(&self.pending, b"\r\n\r\n") {
                let rest = self.pending.split_off(end + 4);
                break std::mem::replace(&mut self.pending, rest);
            }
            self.fill()?;
        };
        parse_head(&head).ok_or_else(|| invalid(&head))
    }

    /// Reads an answer; `bodiless` when it is to a `HEAD`.
    ///
    /// **Errors**: the connection ends or is silent before its head is whole.
    pub fn read_response(&mut self, bodiless: bool) -> Result<Response> {
        let mut response = self.read_head()?;
        while (100..200).contains(&response.status) {
            response = self.read_head()?;
        }
        if bodiless || matches!(response.status, 204 | 304) {
            return Ok(response);
        }
        let read = if response.header("transfer-encoding") == Some("chunked") {
            self.read_chunked(&mut response.body)
        } else if let Some(length) = response.header("content-length") {
            let length = length.parse().map_err(|_| invalid(length.as_bytes()))?;
            self.read_exactly(length, &mut response.body)
        } else {
            self.read_exactly(usize::MAX, &mut response.body)
        };
        response.complete = read.is_ok();
        Ok(response)
    }

    /// Reads `length` bytes of body.
    ///
    /// **Errors**: the connection ends before.
    pub fn read_body(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut body = Vec::with_capacity(length);
        self.read_exactly(length, &mut body)?;
        Ok(body)
    }

    /// Reads `length` bytes of body and forgets them.
    ///
    /// **Errors**: the connection ends before.
    pub fn skip_body(&mut self, length: usize) -> Result<()> {
        let mut left = length.saturating_sub(self.pending.len());
        self.pending.clear();
        let mut buffer = vec![0; 256 << 10];
        while left > 0 {
            match read_some(&mut self.stream, &mut buffer)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                n => left = left.saturating_sub(n),
            }
        }
        Ok(())
    }

    /// Sends a `GET` and forgets the body of its answer; says how long that body was.
    ///
    /// **Errors**: no answer, none of 200 with a length, or a body cut short.
    pub fn download(&mut self, target: &str) -> Result<usize> {
        let request = Request::get(target).to_bytes(self.address);
        self.stream.write_all(&request)?;
        let head = self.read_head()?;
        let length = head
            .header("content-length")
            .and_then(|length| length.parse().ok());
        let length = length
            .filter(|_| head.status == 200)
            .ok_or_else(|| invalid(b"no body"))?;
        self.skip_body(length)?;
        Ok(length)
    }

    /// Sends a `GET`; says how long it took until the first byte of the body was here, and forgets
    /// the rest with the connection.
    ///
    /// **Errors**: no answer, or none with a body.
    pub fn first_byte(mut self, target: &str) -> Result<Duration> {
        let request = Request::get(target).to_bytes(self.address);
        let started = Instant::now();
        self.stream.write_all(&request)?;
        self.read_head()?;
        self.read_body(1)?;
        Ok(started.elapsed())
    }

    /// Moves up to `length` bytes of body to `into`, keeping what came when the rest does not.
    fn read_exactly(&mut self, length: usize, into: &mut Vec<u8>) -> Result<()> {
        let mut left = length;
        loop {
            let take = left.min(self.pending.len());
            into.extend(self.pending.drain(..take));
            left -= take;
            if left == 0 {
                return Ok(());
            }
            self.fill()?;
        }
    }

    fn read_chunked(&mut self, into: &mut Vec<u8>) -> Result<()> {
        loop {
            let line = self.read_line()?;
            let size = line.split(|&b| b == b';').next().unwrap_or_default();
            let size = std::str::from_utf8(size)
                .ok()
                .and_then(|s| usize::from_str_radix(s, 16).ok());
            let size = size.ok_or_else(|| invalid(&line))?;
            self.read_exactly(size, into)?;
            if !self.read_line()?.is_empty() {
                return Err(invalid(b"chunk end"));
            }
            if size == 0 {
                return Ok(());
            }
        }
    }

    fn read_line(&mut self) -> Result<Vec<u8>> {
        loop {
            if let Some(end) = find(&self.pending, b"\r\n") {
                let rest = self.pending.split_off(end + 2);
                let mut line = std::mem::replace(&mut self.pending, rest);
                line.truncate(end);
                return Ok(line);
            }
            self.fill()?;
        }
    }

    fn fill(&mut self) -> Result<()> {
        let mut buffer = [0; 64 << 10];
        match read_some(&mut self.stream, &mut buffer)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            n => {
                self.pending.extend_from_slice(&buffer[..n]);
                Ok(())
            }
        }
    }
}

/// Reads what there is, however often that is interrupted. A read with a time-out is, by any signal: also
/// when a child of another thread ends just while that thread starts the next one, or when the process
/// was stopped. That says nothing about the server.
fn read_some(stream: &mut impl Read, buffer: &mut [u8]) -> Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

fn parse_head(head: &[u8]) -> Option<Response> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.trim_end().split("\r\n");
    let status = lines
        .next()?
        .strip_prefix("HTTP/1.")?
        .get(2..5)?
        .parse()
        .ok()?;
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    };
    let headers = lines.map(header).collect::<Option<_>>()?;
    Some(Response {
        status,
        headers,
        body: Vec::new(),
        complete: true,
    })
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

fn invalid(what: &[u8]) -> Error {
    let text = String::from_utf8_lossy(&what[..what.len().min(80)]).into_owned();
    Error::new(ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Interrupted before every read but each third.
    struct Interrupted<'a> {
        bytes: &'a [u8],
        turn: usize,
    }

    impl Read for Interrupted<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
            self.turn += 1;
            match self.turn % 3 {
                0 => self.bytes.read(buffer),
                _ => Err(ErrorKind::Interrupted.into()),
            }
        }
    }

    #[test]
    fn an_interrupted_read_is_no_end() {
        let (bytes, turn) = (b"body".as_slice(), 0);
        let mut stream = Interrupted { bytes, turn };
        let mut buffer = [0; 3];
        let lens = [(); 3].map(|()| read_some(&mut stream, &mut buffer).expect("reads"));
        assert_eq!(lens, [3, 1, 0]);
    }
}
