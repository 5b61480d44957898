//! Fuzz targets: everything that is decoded from the wire. See CONTRIBUTING.md for how to run one for longer.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use bytes::Bytes;
use protocol::BlockMap;
use protocol::frame::{Frame, HEADER, Header};

/// For each target in a run of all tests.
const WHILE: Duration = Duration::from_secs(6);

/// Messages as they are, to be twisted.
const MESSAGES: &[&str] = &[
    r#"{"message":"greeting","version":7,"link":"6f1c2a34-5b7d-4e8f-9a0b-1c2d3e4f5a6b","lane":0,"lanes":1}"#,
    r#"{"message":"hello","item":"web01","token":"0123","generation":1}"#,
    r#"{"message":"welcome","position":null,"newest":"1.6","disks":[{"disk":"disk0","size":65536}],"has_content":true,"leaves":{"key":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31],"bytes":131072}}"#,
    r#"{"message":"open_epoch","header":{"lineage":"6f1c2a34-5b7d-4e8f-9a0b-1c2d3e4f5a6b","attempt":"1.7","base":null,"basis":"tracked","cut_at_ms":1,"disks":[],"kind":"final","expected_bytes":0}}"#,
    r#"{"message":"seal","attempt":"1.7","totals":{"frames":1,"data_bytes":2,"zero_bytes":3,"digest":4}}"#,
    r#"{"message":"hash_request","disk":0,"level":2,"offset":0,"length":65536}"#,
    r#"{"message":"copy","id":"6f1c2a34-5b7d-4e8f-9a0b-1c2d3e4f5a6b","size":65536,"dry_run":false,"leaf_bytes":4194304}"#,
    r#"{"message":"refused","fault":{"code":"MOV-005","message":"a","cause":"b","remedy":"c"}}"#,
];

/// A payload under a header that tells the truth about it.
fn framed(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = b"SKY1".to_vec();
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&twox_hash::XxHash3_64::oneshot(payload).to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn decode(bytes: &[u8]) -> Option<Frame> {
    let header = Header::decode(bytes[..HEADER].try_into().unwrap()).ok()?;
    header.frame(Bytes::copy_from_slice(&bytes[HEADER..])).ok().map(|(frame, _)| frame)
}

/// What was understood is understood the same when it is said again.
fn settled(frame: &Frame) {
    let (bytes, _) = frame.encode();
    assert_eq!(decode(&bytes).as_ref(), Some(frame));
}

#[test]
fn the_messages_to_be_twisted_are_messages() {
    for text in MESSAGES {
        let frame = decode(&framed(1, text.as_bytes()));
        settled(&frame.unwrap_or_else(|| panic!("{text}")));
    }
}

#[test]
fn a_header_and_whatever_follows_it() {
    bolero::check!().with_max_len(200).with_test_time(WHILE).for_each(|bytes: &[u8]| {
        if bytes.len() >= HEADER
            && let Some(frame) = decode(bytes)
        {
            settled(&frame);
        }
    });
}

#[test]
fn a_payload_under_a_true_checksum() {
    bolero::check!().with_max_len(4096).with_test_time(WHILE).for_each(|bytes: &[u8]| {
        let Some((kind, payload)) = bytes.split_first() else { return };
        if let Some(frame) = decode(&framed(u16::from(kind % 7), payload)) {
            settled(&frame);
        }
    });
}

/// A block whose compressed bytes were changed: what comes out of it is of the length that was claimed, or nothing.
#[test]
fn a_packed_block_in_which_something_was_changed() {
    let block: Vec<u8> = (0..8192u32).map(|n| (n / 50) as u8 ^ (n % 7) as u8).collect();
    let data = Frame::Data { sequence: 3, disk: 1, offset: 1 << 20, bytes: block.into() };
    let packed = protocol::packed::pack(&data.encode().0).unwrap();
    let payload = &packed[HEADER..];
    assert_eq!(decode(&packed).as_ref(), Some(&data));
    bolero::check!().with_max_len(64).with_test_time(WHILE).for_each(|twists: &[u8]| {
        let mut payload = payload.to_vec();
        for twist in twists.chunks_exact(3) {
            let at = usize::from(u16::from_le_bytes([twist[0], twist[1]])) % payload.len();
            payload[at] = twist[2];
        }
        if let Some(frame) = decode(&framed(5, &payload)) {
            settled(&frame);
        }
    });
}

#[test]
fn a_message_in_which_something_was_changed() {
    bolero::check!().with_max_len(64).with_test_time(WHILE).for_each(|bytes: &[u8]| {
        let Some(([which, how], twists)) = bytes.split_first_chunk::<2>() else { return };
        let mut text = MESSAGES[usize::from(*which) % MESSAGES.len()].as_bytes().to_vec();
        for twist in twists.chunks_exact(3).take(1 + usize::from(how % 4)) {
            let at = usize::from(u16::from_le_bytes([twist[0], twist[1]])) % text.len();
            match how % 3 {
                0 => text[at] = twist[2],
                1 => drop(text.remove(at)),
                _ => text.insert(at, twist[2]),
            }
        }
        if let Some(frame) = decode(&framed(1, &text)) {
            settled(&frame);
        }
    });
}

#[test]
fn a_map_of_changes() {
    bolero::check!().with_max_len(1024).with_test_time(WHILE).for_each(|bytes: &[u8]| {
        if let Ok(map) = BlockMap::from_bytes(bytes) {
            assert!(map.extents().windows(2).all(|pair| pair[0].end() < pair[1].offset));
            assert_eq!(BlockMap::from_bytes(&map.to_bytes()).ok(), Some(map));
        }
    });
}
