//! Figures and how they are told: medians, intervals, goals, rows of a table.

/// The middle one.
pub fn median(values: &[f64]) -> f64 {
    at(values, values.len() / 2)
}

/// `low to high`, of all values.
pub fn range(values: &[f64], digits: usize) -> String {
    format!("{:.digits$} to {:.digits$}", at(values, 0), at(values, values.len().saturating_sub(1)))
}

/// Where the median of what was sampled lies with a confidence of at least 95 %, whatever its distribution is: the values
/// at two places of the sorted sample, by the binomial distribution of how many lie below the median. Fewer than six values
/// say less; then it is their range.
pub fn interval(values: &[f64]) -> (f64, f64) {
    let count = values.len();
    let (mut outside, mut term, mut places) = (0.0, 0.5f64.powi(count as i32), 0);
    while places < count / 2 {
        outside += 2.0 * term;
        if outside > 0.05 {
            break;
        }
        places += 1;
        term *= (count - places + 1) as f64 / places as f64;
    }
    let low = places.saturating_sub(1);
    (at(values, low), at(values, count.saturating_sub(1 + low)))
}

/// The value at a place of the sorted sample.
pub fn at(values: &[f64], place: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(place).copied().unwrap_or(f64::NAN)
}

/// The value below which so many percent of the values lie.
pub fn percentile(values: &[f64], percent: usize) -> f64 {
    at(values, (values.len() * percent / 100).min(values.len().saturating_sub(1)))
}

/// A goal and whether it was reached.
pub fn goal(words: &str, met: bool) -> String {
    format!("{words}: {}", if met { "met" } else { "**missed**" })
}

/// Bytes as MB.
pub fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// The head of a table.
pub fn head(title: &str, columns: &[&str]) {
    println!("\n### {title}\n\n| {} |", columns.join(" | "));
    println!("|{}", "---|".repeat(columns.len()));
}

/// A row of it.
pub fn row(cells: &[String]) {
    println!("| {} |", cells.join(" | "));
}
