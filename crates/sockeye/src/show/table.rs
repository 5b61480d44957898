//! Tables: columns under capital headings, no lines, as wide as the terminal allows.

use std::io::IsTerminal;

use comfy_table::{ContentArrangement, Table, presets};

use super::{tame, words};

/// Lays rows out under headings; without rows, says `empty` instead.
pub fn table(headings: &[&str], rows: Vec<Vec<String>>, empty: &str) -> String {
    if rows.is_empty() {
        return empty.to_string();
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(headings.iter().copied());
    table.set_content_arrangement(ContentArrangement::Disabled);
    if let Some(width) = terminal_width() {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    }
    for row in rows {
        table.add_row(row.iter().map(|cell| words::or_dash(Some(tame(cell)))));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Titles and values beneath each other; what is empty is left out.
pub fn facts(facts: &[(&str, String)]) -> String {
    let shown: Vec<_> = facts.iter().filter(|(_, value)| !value.is_empty()).collect();
    let width = shown.iter().map(|(title, _)| title.chars().count()).max().unwrap_or(0);
    let lines: Vec<_> = shown
        .iter()
        .map(|(title, value)| format!("  {title:<width$}  {}", value.replace('\n', &format!("\n  {:width$}  ", ""))))
        .collect();
    lines.join("\n")
}

fn terminal_width() -> Option<u16> {
    let out = std::io::stdout();
    if !out.is_terminal() {
        return None;
    }
    rustix::termios::tcgetwinsize(&out).ok().map(|size| size.ws_col).filter(|width| *width >= 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_beneath_their_headings_and_nothing_is_left_blank() {
        let rows = vec![vec!["web01".into(), "ok".into()], vec!["a".into(), String::new()]];
        assert_eq!(table(&["ITEM", "HEALTH"], rows, "none"), "ITEM   HEALTH\nweb01  ok\na      -");
        assert_eq!(table(&["ITEM"], vec![], "there are no items"), "there are no items");
    }

    #[test]
    fn a_second_line_of_a_fact_stands_under_the_first() {
        assert_eq!(
            facts(&[("a", "1\n2".into()), ("long", "x".into()), ("none", String::new())]),
            "  a     1\n        2\n  long  x"
        );
    }
}
