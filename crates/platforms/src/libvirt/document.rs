//! libvirt's XML as a tree that is read and changed in place: what we do not understand stays as it is.

use xmltree::{Element, EmitterConfig, XMLNode};

/// A document or a part of it.
pub(crate) trait Document: Sized {
    /// Reads one.
    fn read(text: &str) -> Result<Self, String>;
    /// Writes it down.
    fn written(&self) -> String;
    /// The attribute `name`.
    fn has(&self, name: &str) -> Option<&str>;
    /// What is at the end of a path of element names.
    fn at(&self, path: &[&str]) -> Option<&Self>;
    /// An attribute of what is at the end of a path.
    fn has_at(&self, path: &[&str], name: &str) -> Option<&str>;
    /// The text of what is at the end of a path.
    fn text_at(&self, path: &[&str]) -> Option<String>;
    /// All children of that name.
    fn all(&self, name: &str) -> impl Iterator<Item = &Self>;
    /// The child of that name, made if it is not there.
    fn child(&mut self, name: &str) -> &mut Self;
    /// The child of that name, replaced by an empty one.
    fn fresh(&mut self, name: &str) -> &mut Self;
    /// Its text, in the place of all that it holds.
    fn say(&mut self, text: impl std::fmt::Display) -> &mut Self;
    /// An attribute, replaced if it is there.
    fn set(&mut self, name: &str, value: impl std::fmt::Display) -> &mut Self;
    /// Takes all children of that name away.
    fn rid(&mut self, name: &str);
    /// Adds a child.
    fn add(&mut self, child: Self);
}

impl Document for Element {
    fn read(text: &str) -> Result<Element, String> {
        Element::parse(text.as_bytes()).map_err(|why| why.to_string())
    }

    fn written(&self) -> String {
        let mut bytes = Vec::new();
        let config = EmitterConfig::new().perform_indent(true).write_document_declaration(false);
        // Written into memory, of names that were read or are ours: it does not fail.
        let _ = self.write_with_config(&mut bytes, config);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn has(&self, name: &str) -> Option<&str> {
        self.attributes.get(name).map(String::as_str)
    }

    fn at(&self, path: &[&str]) -> Option<&Element> {
        path.iter().try_fold(self, |element, name| element.get_child(*name))
    }

    fn has_at(&self, path: &[&str], name: &str) -> Option<&str> {
        self.at(path)?.has(name)
    }

    fn text_at(&self, path: &[&str]) -> Option<String> {
        self.at(path)?.get_text().map(|text| text.trim().to_string())
    }

    fn all(&self, name: &str) -> impl Iterator<Item = &Element> {
        self.children.iter().filter_map(XMLNode::as_element).filter(move |child| child.name == name)
    }

    fn child(&mut self, name: &str) -> &mut Element {
        let is_it = |node: &XMLNode| node.as_element().is_some_and(|child| child.name == name);
        let place = self.children.iter().position(is_it).unwrap_or_else(|| {
            self.children.push(XMLNode::Element(Element::new(name)));
            self.children.len() - 1
        });
        match &mut self.children[place] {
            XMLNode::Element(child) => child,
            _ => unreachable!("it was looked for among elements"),
        }
    }

    fn fresh(&mut self, name: &str) -> &mut Element {
        let child = self.child(name);
        child.attributes.clear();
        child.children.clear();
        child
    }

    fn say(&mut self, text: impl std::fmt::Display) -> &mut Element {
        self.children = vec![XMLNode::Text(text.to_string())];
        self
    }

    fn set(&mut self, name: &str, value: impl std::fmt::Display) -> &mut Element {
        self.attributes.insert(name.into(), value.to_string());
        self
    }

    fn rid(&mut self, name: &str) {
        self.children.retain(|node| node.as_element().is_none_or(|child| child.name != name));
    }

    fn add(&mut self, child: Element) {
        self.children.push(XMLNode::Element(child));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_stays() {
        let text = "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><!-- mine -->\
            <name>a</name><metadata><x:mine xmlns:x='urn:x' n='1'>&lt;5</x:mine></metadata>\
            <qemu:commandline><qemu:arg value='-foo'/></qemu:commandline></domain>";
        let mut domain = Element::read(text).unwrap();
        domain.child("name").say("b");
        domain.child("devices").child("emulator").say("/bin/qemu");
        let written = domain.written();
        for kept in ["<!-- mine -->", "urn:x", "&lt;5", "qemu:commandline", "-foo", "<name>b</name>", "type=\"kvm\""] {
            assert!(written.contains(kept), "{kept} is not in {written}");
        }
        let again = Element::read(&written).unwrap();
        assert_eq!(again.text_at(&["devices", "emulator"]).unwrap(), "/bin/qemu");
        assert_eq!(again.at(&["commandline", "arg"]).unwrap().has("value"), Some("-foo"));
    }

    #[test]
    fn what_is_no_xml_is_refused() {
        for bad in ["", "<a>", "hello", "<a></b>"] {
            assert!(Element::read(bad).is_err(), "{bad}");
        }
    }
}
