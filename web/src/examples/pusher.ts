import { mount } from "svelte";
import "../app.css";
import "./examples.css";
import Example from "./Example.svelte";

mount(Example, { target: document.getElementById("app")! });
