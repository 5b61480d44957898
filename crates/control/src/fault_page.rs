//! The page `docs/fault-codes.md`, from the catalogue.

use protocol::fault::CATALOGUE;

/// The page that explains every code.
pub fn fault_codes_page() -> String {
    let mut page = String::from(
        "# Fault codes\n\n\
         Made from the catalogue in `protocol::fault`; a test compares. Rewrite with `SOCKEYE_REWRITE=1 cargo nextest run -p control`.\n\
         The command line explains a code with `sockeye explain CODE`.\n",
    );
    let mut room = "";
    for entry in CATALOGUE {
        let prefix = entry.code.split('-').next().unwrap_or_default();
        if prefix != room {
            room = prefix;
            let title = match prefix {
                "CTL" => "decisions",
                "MOV" => "movement between sites",
                "RPL" => "replicas",
                "PLT" => "platforms",
                _ => "other",
            };
            page.push_str(&format!("\n## {prefix}: {title}\n\n| code | when | what to do |\n|---|---|---|\n"));
        }
        page.push_str(&format!("| `{}` | {} | {} |\n", entry.code, entry.title, entry.remedy.replace('|', "\\|")));
    }
    page
}
