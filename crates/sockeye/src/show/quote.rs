//! What a movement is expected to cost, and what a move then cost.

use protocol::pace::Limit;
use protocol::quote::{Downtime, ExpectedDowntime, Quote, Quoted, Window};

use super::table::facts;
use super::words;

/// The page of `sockeye quote`.
pub fn page(quoted: &[Quoted]) -> String {
    if quoted.is_empty() {
        return "nothing that moves data can be begun with it now".into();
    }
    let one = |quoted: &Quoted| format!("{}\n{}", quoted.command, facts(&rows(&quoted.quote)));
    quoted.iter().map(one).collect::<Vec<_>>().join("\n")
}

/// The lines of a quote, as they stand in a plan.
pub fn rows(quote: &Quote) -> Vec<(&'static str, String)> {
    let mut data =
        quote.bytes.map_or("not known beforehand".into(), |bytes| format!("{} to be sent", words::bytes(bytes)));
    if let Some(most) = quote.read_at_most {
        data.push_str(&format!("; at most {} are read at each end", words::bytes(most)));
    }
    let from = if quote.limit == Some(Limit::Cap) { "under the cap" } else { "as measured" };
    let rate = quote.rate.map_or(String::new(), |rate| format!(" at {}/s, {from}", words::bytes(rate)));
    let time = match quote.moving_ms {
        Some(0) if quote.rate.is_none() => String::new(),
        Some(ms) => format!("{}{rate}", words::span(ms)),
        None => format!("not known beforehand{rate}"),
    };
    vec![
        ("data", data),
        ("time", time),
        ("limited by", quote.limit.map(|limit| limit.to_string()).unwrap_or_default()),
        ("downtime", quote.downtime.as_ref().map(downtime).unwrap_or_default()),
        ("note", quote.notes.join("\n")),
    ]
}

fn downtime(expected: &ExpectedDowntime) -> String {
    let mut text =
        expected.expected_ms.map_or("not known beforehand".into(), |ms| format!("{} expected", words::span(ms)));
    if let Some(most) = expected.budget_ms {
        text.push_str(&format!(", {} allowed", words::span(most)));
    }
    let part = |what: &str, ms: Option<u64>| ms.map(|ms| format!("{what} {}", words::span(ms)));
    let parts = [part("last delta", expected.last_delta_ms), part("bringing it up", expected.bring_up_ms)];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    if !parts.is_empty() {
        text.push_str(&format!(": {}", parts.join(", ")));
    }
    let before = [part("took", expected.shut_down_ms), part("may take", expected.shut_down_at_most_ms)];
    let before: Vec<_> = before.into_iter().flatten().collect();
    if !before.is_empty() {
        text.push_str(&format!("\nbefore that the guest shuts down: it {}", before.join(" the last time, it ")));
    }
    text
}

/// What a downtime was made of.
pub fn parts(down: &Downtime) -> String {
    let Downtime { shut_down_ms, last_delta_ms, seal_ms, bring_up_ms, start_ms } = *down;
    let [shut_down, delta, seal, bring_up, start] =
        [shut_down_ms, last_delta_ms, seal_ms, bring_up_ms, start_ms].map(words::span);
    format!(
        "last delta {delta}, sealed in {seal}, brought up in {bring_up}, start accepted in {start}; before it {shut_down} to shut down"
    )
}

/// What was expected, in one line; empty where nothing was.
pub fn expected(quote: &Quote) -> String {
    let down = quote.downtime.as_ref().and_then(|down| down.expected_ms);
    let parts = [
        quote.bytes.map(|bytes| format!("{} to be sent", words::bytes(bytes))),
        quote.moving_ms.map(|ms| format!("within {}", words::span(ms))),
        down.map(|ms| format!("{} of downtime", words::span(ms))),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// When *Complete* comes by itself.
pub fn window(window: &Window) -> String {
    format!("by itself between {} and {}", words::instant_u(window.from_ms), words::instant_u(window.until_ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::pace::Limit;

    #[test]
    fn what_is_known_is_told_in_figures_and_what_is_not_is_said() {
        let known = Quote {
            bytes: Some(12 << 20),
            rate: Some(6 << 20),
            moving_ms: Some(2000),
            limit: Some(Limit::Wire),
            downtime: Some(ExpectedDowntime {
                expected_ms: Some(1100),
                last_delta_ms: Some(100),
                bring_up_ms: Some(1000),
                shut_down_ms: Some(12_000),
                shut_down_at_most_ms: Some(300_000),
                budget_ms: Some(5000),
            }),
            ..Quote::default()
        };
        let text = page(&[Quoted { command: "sockeye failback web01".into(), quote: known.clone() }]);
        for part in [
            "sockeye failback web01",
            "12.0 MiB to be sent",
            "2.0 s at 6.0 MiB/s, as measured",
            "the wire",
            "1.1 s expected, 5.0 s allowed: last delta 100 ms, bringing it up 1.0 s",
            "before that the guest shuts down: it took 12 s the last time, it may take 5 min",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert_eq!(expected(&known), "12.0 MiB to be sent, within 2.0 s, 1.1 s of downtime");
        let unknown = Quote {
            read_at_most: Some(1 << 30),
            downtime: Some(ExpectedDowntime::default()),
            notes: vec!["nothing was measured yet".into()],
            ..Quote::default()
        };
        let text = facts(&rows(&unknown));
        for part in [
            "not known beforehand; at most 1.0 GiB are read at each end",
            "time      not known beforehand",
            "downtime  not known beforehand",
            "nothing was measured yet",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert_eq!(expected(&unknown), "");
    }
}
