//! WebSocket frames as the gateway writes them (RFC 6455, 5.2): unmasked and unfragmented.

use bytes::Bytes;

/// A WebSocket opcode that the gateway writes (RFC 6455, 5.2).
#[derive(Clone, Copy)]
pub(super) enum Opcode {
    Text = 0x1,
    Close = 0x8,
    Ping = 0x9,
}

/// Appends one unmasked, unfragmented WebSocket frame (RFC 6455, 5.2) whose payload `write` appends.
pub(super) fn frame(out: &mut Vec<u8>, opcode: Opcode, write: impl FnOnce(&mut Vec<u8>)) {
    frame_before(out, opcode, 0, write);
}

/// The same, of a payload that goes on elsewhere with so many bytes.
fn frame_before(out: &mut Vec<u8>, opcode: Opcode, elsewhere: usize, write: impl FnOnce(&mut Vec<u8>)) {
    const LONGEST_HEADER: usize = 10;
    let start = out.len();
    out.extend_from_slice(&[0; LONGEST_HEADER]);
    write(out);
    let written = out.len() - start - LONGEST_HEADER;
    let length = written + elsewhere;
    let mut header = [0; LONGEST_HEADER];
    header[0] = 0x80 | opcode as u8;
    let header_length = match length {
        0..=125 => {
            header[1] = length as u8;
            2
        }
        126..=0xffff => {
            header[1] = 126;
            header[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            4
        }
        _ => {
            header[1] = 127;
            header[2..10].copy_from_slice(&(length as u64).to_be_bytes());
            10
        }
    };
    // The length is known only now; the payload moves up to the header that it needs.
    out.copy_within(start + LONGEST_HEADER.., start + header_length);
    out.truncate(start + header_length + written);
    out[start..start + header_length].copy_from_slice(&header[..header_length]);
}

/// The payloads of whole frames that were written above, in their order.
pub fn payloads(mut frames: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (header, length) = match *frames.get(1)? {
            126 => (4, usize::from(u16::from_be_bytes(frames[2..4].try_into().expect("two bytes")))),
            127 => (10, u64::from_be_bytes(frames[2..10].try_into().expect("eight bytes")) as usize),
            length => (2, usize::from(length)),
        };
        let (frame, rest) = frames.split_at(header + length);
        frames = rest;
        Some(&frame[header..])
    })
}

/// From how many bytes on a payload is not copied to be tagged.
const SHARED_BYTES_MIN: usize = 64 << 10;

/// The same text frames, each of which says first whose it is: `sub` is the JSON text of what the client calls the subscription. In
/// pieces that make whole frames together: what is large stays shared.
pub fn tagged(frames: &Bytes, sub: &str) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    let mut out = Vec::with_capacity(frames.len().min(SHARED_BYTES_MIN) * 9 / 8 + 64);
    for payload in payloads(frames) {
        // Every frame is an object with a type.
        let rest = &payload[1..];
        let shared = rest.len() >= SHARED_BYTES_MIN;
        let behind = if shared { rest.len() } else { 0 };
        frame_before(&mut out, Opcode::Text, behind, |out| {
            out.extend_from_slice(br#"{"sub":"#);
            out.extend_from_slice(sub.as_bytes());
            out.push(b',');
            if !shared {
                out.extend_from_slice(rest);
            }
        });
        if shared {
            pieces.extend([std::mem::take(&mut out).into(), frames.slice_ref(rest)]);
        }
    }
    pieces.push(out.into());
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_the_shortest_header_that_fits() {
        for (length, header) in [
            (0, vec![0x81, 0]),
            (125, vec![0x81, 125]),
            (126, vec![0x81, 126, 0, 126]),
            (65535, vec![0x81, 126, 0xff, 0xff]),
            (65536, vec![0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let mut out = b"before".to_vec();

            frame(&mut out, Opcode::Text, |out| out.extend(std::iter::repeat_n(b'x', length)));

            assert_eq!(out[6..6 + header.len()], header);
            assert_eq!(out[6 + header.len()..], vec![b'x'; length]);
        }
    }

    #[test]
    fn a_tag_goes_into_every_frame_whatever_its_length() {
        let mut frames = Vec::new();
        for length in [0, 100, 119, 65_000, 70_000] {
            let payload = format!(r#"{{"type":"{}"}}"#, "x".repeat(length));
            frame(&mut frames, Opcode::Text, |out| out.extend_from_slice(payload.as_bytes()));
        }

        let tagged = tagged(&frames.into(), r#""a""#).concat();

        let payloads: Vec<&[u8]> = payloads(&tagged).collect();
        assert_eq!(payloads.len(), 5);
        for (payload, length) in payloads.into_iter().zip([0, 100, 119, 65_000, 70_000]) {
            let expected = format!(r#"{{"sub":"a","type":"{}"}}"#, "x".repeat(length));
            assert_eq!(payload, expected.as_bytes());
        }
    }
}
