//! Server-sent events: a response that never ends, cut into events.
//!
//! # Always true
//! - A line or an event without end is cut off by [`MOST_BYTES`], not collected.

use reqwest::Response;
use serde_json::Value;

/// The longest event that is kept.
const MOST_BYTES: usize = 4 * 1024 * 1024;

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// What it is about: `job` or `item`.
    pub name: String,
    /// The document that changed.
    pub data: Value,
}

/// Events as they come.
#[derive(Debug)]
pub struct Stream {
    response: Response,
    cutter: Cutter,
}

impl Stream {
    /// Reads the events of this response.
    pub fn new(response: Response) -> Stream {
        Stream { response, cutter: Cutter::default() }
    }

    /// The next event; none when the server closed the connection.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn next(&mut self) -> Result<Option<Event>, reqwest::Error> {
        loop {
            if let Some(event) = self.cutter.event() {
                return Ok(Some(event));
            }
            match self.response.chunk().await? {
                Some(chunk) => self.cutter.add(&chunk),
                None => return Ok(None),
            }
        }
    }
}

/// Cuts bytes into events: `event:` and `data:` lines, ended by an empty one; anything else is a comment.
#[derive(Debug, Default)]
struct Cutter {
    bytes: Vec<u8>,
}

impl Cutter {
    fn add(&mut self, bytes: &[u8]) {
        if self.bytes.len().saturating_add(bytes.len()) > MOST_BYTES {
            self.bytes.clear();
        }
        self.bytes.extend(bytes.iter().filter(|byte| **byte != b'\r'));
    }

    fn event(&mut self) -> Option<Event> {
        loop {
            let end = self.bytes.windows(2).position(|pair| pair == b"\n\n")?;
            let block: Vec<u8> = self.bytes.drain(..end + 2).collect();
            if let Some(event) = read(&String::from_utf8_lossy(&block)) {
                return Some(event);
            }
        }
    }
}

fn read(block: &str) -> Option<Event> {
    let (mut name, mut data) = (String::from("message"), String::new());
    for line in block.lines() {
        match line.split_once(':') {
            Some(("event", rest)) => name = rest.trim().to_string(),
            Some(("data", rest)) => {
                data.push_str(rest.strip_prefix(' ').unwrap_or(rest));
                data.push('\n');
            }
            _ => {}
        }
    }
    let data = serde_json::from_str(&data).ok()?;
    Some(Event { name, data })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_are_cut_however_the_bytes_arrive() {
        let text = b": hello\n\nevent: job\r\ndata: {\"id\":1}\r\n\r\ndata: [1,\ndata: 2]\n\nevent: job\ndata: broken\n\nevent: item\ndata: {}\n\n";
        for step in [1, 7, text.len()] {
            let (mut cutter, mut seen) = (Cutter::default(), Vec::new());
            for chunk in text.chunks(step) {
                cutter.add(chunk);
                seen.extend(std::iter::from_fn(|| cutter.event()));
            }
            let event = |name: &str, data| Event { name: name.into(), data };
            assert_eq!(
                seen,
                [event("job", json!({"id": 1})), event("message", json!([1, 2])), event("item", json!({}))]
            );
        }
    }

    #[test]
    fn an_event_without_end_is_not_collected() {
        let mut cutter = Cutter::default();
        for _ in 0..10 {
            cutter.add(&vec![b'x'; 1024 * 1024]);
            assert!(cutter.event().is_none() && cutter.bytes.len() <= MOST_BYTES);
        }
    }
}
