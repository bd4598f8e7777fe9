// What happens on every page. Each module minds one thing.

import * as clock from "./clock.js";
import * as dragging from "./dragging.js";
import * as events from "./events.js";
import * as forms from "./forms.js";
import * as parts from "./parts.js";
import * as phone from "./phone.js";
import * as ping from "./ping.js";
import * as transcript from "./transcript.js";

clock.start();
dragging.start();
forms.start();
phone.start();
ping.start();
transcript.start();
parts.start();
events.start();
