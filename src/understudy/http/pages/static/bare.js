import { startCopying } from "./copying.js";

startCopying();
