//! NARs made by hand: an encoder that shares no code with what it tests.

/// Something a NAR can hold.
#[derive(Clone, Debug)]
pub enum Node {
    /// A regular file.
    File {
        /// Whether its owner may execute it.
        executable: bool,
        /// Its bytes.
        contents: Vec<u8>,
    },
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// Names and what they name, in the order in which they are written.
    Directory(Vec<(Vec<u8>, Node)>),
}

impl Node {
    /// A regular file that is not executable.
    pub fn file(contents: impl Into<Vec<u8>>) -> Node {
        Node::File {
            executable: false,
            contents: contents.into(),
        }
    }

    /// A directory of the named members, written in the order given, right or wrong.
    pub fn directory<'a>(members: impl IntoIterator<Item = (&'a str, Node)>) -> Node {
        let own = |(name, node): (&str, Node)| (name.as_bytes().to_vec(), node);
        Node::Directory(members.into_iter().map(own).collect())
    }

    /// The NAR of this.
    pub fn to_nar(&self) -> Vec<u8> {
        let mut nar = Vec::new();
        string(&mut nar, b"nix-archive-1");
        self.write(&mut nar);
        nar
    }

    fn write(&self, out: &mut Vec<u8>) {
        string(out, b"(");
        string(out, b"type");
        match self {
            Node::File {
                executable,
                contents,
            } => {
                string(out, b"regular");
                if *executable {
                    string(out, b"executable");
                    string(out, b"");
                }
                string(out, b"contents");
                string(out, contents);
            }
            Node::Symlink(target) => {
                string(out, b"symlink");
                string(out, b"target");
                string(out, target);
            }
            Node::Directory(members) => {
                string(out, b"directory");
                for (name, node) in members {
                    string(out, b"entry");
                    string(out, b"(");
                    string(out, b"name");
                    string(out, name);
                    string(out, b"node");
                    node.write(out);
                    string(out, b")");
                }
            }
        }
        string(out, b")");
    }
}

/// Appends a string as a NAR writes it: length as 8 bytes little endian, bytes, zeros up to a
/// multiple of 8.
pub fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(8), 0);
}
