package config

// Origin is where settings stand. It decides whether they may name programs, and the words of errors.
//
// Programs are what runs as the user: a library that is loaded (module-path) and a command that is run (pin-source
// exec:). Flags, the environment and the config file may name any. All else is data: it may name those alone that the
// config file lists under modules and commands, or that the environment and the config file give for the same key
// anyway. The zero Origin is data.
type Origin struct {
	name          string
	namesPrograms bool
	showsPIN      string // who would see a PIN that stands there
}

var (
	// Flags are the arguments of a command, the references to keys among them.
	Flags = Origin{name: "the command line", namesPrograms: true, showsPIN: "the process list"}
	// PluginConfig is what Notation hands over: plugin config, and the key's id. It is data: they stand in Notation's
	// list of keys.
	PluginConfig = Origin{name: "plugin config", showsPIN: "Notation's signing key list"}

	environmentOrigin = Origin{name: "the environment", namesPrograms: true}
)

// Stored is the origin of settings in a file that the commands write or read, or in a request: data. where names it in
// errors.
func Stored(where string) Origin { return Origin{name: where, showsPIN: where} }

// uri is the origin of the attributes of a key's URI that stands there.
func (o Origin) uri() Origin {
	switch o {
	case Flags:
		o.name = keyURI
	case PluginConfig:
		o.name = "the key id"
	default:
		o.name = keyURI + " in " + o.name
	}
	return o
}
