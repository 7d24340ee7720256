// Preact and htm under one roof: templates as tagged strings, no build step.

import {Component, h, render} from "preact";
import {useEffect, useLayoutEffect, useRef, useState} from "preact/hooks";
import htm from "htm";

export const html = htm.bind(h);
export {Component, render, useEffect, useLayoutEffect, useRef, useState};
